#include "kernels.h"

#include <stdexcept>

namespace baichuan2 {

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        found.push_back(&kAvx2Kernels);
    }
#endif
    found.push_back(&kScalarKernels);
    return found;
}

const Kernels& find_kernels(const std::string& name) {
    std::string names;
    for (const Kernels* kernels : available_kernels()) {
        if (name.empty() || name == kernels->name) return *kernels;
        names += (names.empty() ? "" : ", ") + std::string(kernels->name);
    }
    throw std::invalid_argument("no kernels named '" + name + "' on this machine; it has " + names);
}

}  // namespace baichuan2
