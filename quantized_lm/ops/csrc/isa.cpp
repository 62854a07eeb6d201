#include "isa.h"

#if defined(SECONDPASS_ARM)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <stdexcept>

namespace secondpass {
namespace {

struct Isa {
    const char* name;
    const Kernels* kernels;
    bool is_usable;
    Layout lookup;
};

// Slowest first.
std::vector<Isa> table() {
    std::vector<Isa> isas{{"scalar", &scalar::kernels, true, Layout::kDot}};
#if defined(SECONDPASS_X86)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
    isas.push_back({"avx2", &avx2::kernels, has_avx2, Layout::kLookupBytes});
    isas.push_back({"avx2vnni", &avx2vnni::kernels,
                    has_avx2 && __builtin_cpu_supports("avxvnni"), Layout::kDot});
    isas.push_back({"avx512vnni", &avx512vnni::kernels, has_vnni, Layout::kDot});
    isas.push_back({"avx512vbmi", &avx512vbmi::kernels,
                    has_vnni && __builtin_cpu_supports("avx512vbmi"), Layout::kLookup});
#endif
#if defined(SECONDPASS_ARM)
    isas.push_back({"neon", &neon::kernels, (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0,
                    Layout::kDot});
#endif
    return isas;
}

Isa row_of(const std::string& name) {
    std::string usable;
    for (const Isa& isa : table()) {
        if (isa.is_usable && name == isa.name) return isa;
        if (isa.is_usable) usable += std::string(" ") + isa.name;
    }
    throw std::invalid_argument("instruction set is " + name + "; need one of" + usable);
}

}  // namespace

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Isa& isa : table())
        if (isa.is_usable) names.emplace_back(isa.name);
    return names;
}

const Kernels& kernels_of(const std::string& isa) { return *row_of(isa).kernels; }

Layout lookup_layout(const std::string& isa) { return row_of(isa).lookup; }

}  // namespace secondpass
