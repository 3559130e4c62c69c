#include "kernels.h"

#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace baichuan2 {
namespace {

#if defined(__x86_64__)
bool has_avx2_fma_f16c() {
    // Compilers before GCC 11 and Clang 15 do not know the name "f16c": leaf 1 of cpuid has it in ECX.
    constexpr unsigned kF16c = 1u << 29;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & kF16c) != 0;
}

bool has_avx512_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

#if defined(BAICHUAN2_HAS_AVX_VNNI)
bool has_avx_vnni() {
#if defined(BAICHUAN2_AVX_VNNI_AS_EVEX)
    return has_avx512_vnni();
#else
    // Compilers before GCC 11 and Clang 12 do not know the name: subleaf 1 of leaf 7 of cpuid has it in EAX.
    constexpr unsigned kAvxVnni = 1u << 4;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
#endif
}
#endif
#elif defined(__aarch64__)
// Bits of Linux's asm/hwcap.h, which has the second since 5.10. Every Armv8 processor under Linux has NEON.
bool has_dotprod() {
    constexpr unsigned long kAsimddp = 1ul << 20;
    return (getauxval(AT_HWCAP) & kAsimddp) != 0;
}

#if defined(BAICHUAN2_HAS_I8MM)
bool has_i8mm() {
    constexpr unsigned long kI8mm = 1ul << 13;
    return (getauxval(AT_HWCAP2) & kI8mm) != 0;
}
#endif
#endif

}  // namespace

std::vector<const Kernels*> available_kernels() {
    std::vector<const Kernels*> all;
#if defined(__x86_64__)
    const bool has_avx2 = has_avx2_fma_f16c();
    if (has_avx2 && has_avx512_vnni()) all.push_back(&kAvx512VnniKernels);
#if defined(BAICHUAN2_HAS_AVX_VNNI)
    if (has_avx2 && has_avx_vnni()) all.push_back(&kAvxVnniKernels);
#endif
    if (has_avx2) all.push_back(&kAvx2Kernels);
#elif defined(__aarch64__)
#if defined(BAICHUAN2_HAS_I8MM)
    if (has_dotprod() && has_i8mm()) all.push_back(&kNeonI8mmKernels);
#endif
    if (has_dotprod()) all.push_back(&kNeonDotprodKernels);
    all.push_back(&kNeonKernels);
#endif
    all.push_back(&kScalarKernels);
    return all;
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
