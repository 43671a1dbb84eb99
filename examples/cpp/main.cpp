// Runs a program that "pc3d export RUN --output program --compiled" wrote, without Python.
// Usage: run PROGRAM POINTS.bin POINTS_OUT.bin, where PROGRAM is the folder, and the files hold float32 (1, N, 3) and
// what the program returns. A program of scenes takes (N, 3) and more inputs: give run() as many tensors.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "pc3d_operators.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: run PROGRAM POINTS.bin POINTS_OUT.bin\n";
    return 2;
  }
  const std::string folder = argv[1];
  if (dlopen((folder + "/libpc3d_operators.so").c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::cerr << dlerror() << "\n";
    return 1;
  }
  std::ifstream in(argv[2], std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const auto num_points = static_cast<int64_t>(bytes.size() / (3 * sizeof(float)));
  const torch::Tensor xyz = torch::from_blob(bytes.data(), {1, num_points, 3}, torch::kFloat32);

  torch::inductor::AOTIModelPackageLoader program(folder + "/model.pt2");
  const torch::Tensor result = program.run({xyz})[0].contiguous();

  std::ofstream out(argv[3], std::ios::binary);
  out.write(reinterpret_cast<const char*>(result.data_ptr<float>()), result.numel() * sizeof(float));
  return out ? 0 : 1;
}
