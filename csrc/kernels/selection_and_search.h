// The two files that kernels/neighbors.h compiles for each level together.
#include "kernels/selection.h"
#include "kernels/search.h"
