// The two files that kernels/neighbors.h compiles for each level together.
#include "kernels/search.h"
#include "kernels/selection.h"
