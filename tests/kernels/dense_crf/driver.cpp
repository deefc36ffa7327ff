// A stand-in for the CUDA driver's library, as far as cuda-core asks it to load and launch kernels: launches run the
// kernels as loops on the CPU. What is launched, and how, is what a real driver would be given.
#include <dlfcn.h>

#include <cstdint>
#include <cstring>

#include "simt.cpp"

namespace {

void* const context = reinterpret_cast<void*>(0x1000);
constexpr int not_found = 500, not_supported = 801;
int refuse() { return not_supported; }

// CUlaunchConfig
struct Configuration {
    unsigned grid[3], block[3], shared;
    void* stream;
    void* attributes;
    unsigned attribute_count;
};

}  // namespace

extern "C" {

long long last_stream = -1, launches = 0;

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    return *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1024, 0;
}
int cuDevicePrimaryCtxRetain(void** found, int) { return *found = context, 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxGetCurrent(void** found) { return *found = context, 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuCtxGetDevice(int* device) { return *device = 0, 0; }
int cuStreamGetCtx(void*, void** found) { return *found = context, 0; }
int cuLibraryLoadData(void** library, const void* code, void*, void*, unsigned, void*, void*, unsigned) {
    if (std::memcmp(code,
                    "\x7f"
                    "ELF",
                    4))
        return 200;
    return *library = context, 0;
}
int cuLibraryUnload(void*) { return 0; }
int cuLibraryGetKernel(void** kernel, void*, const char* name) {
    const auto found = simt::kernels().find(name);
    if (found == simt::kernels().end()) return not_found;
    return *kernel = &found->second, 0;
}
int cuGetErrorName(int, const char** text) { return *text = "STAND_IN", 0; }
int cuGetErrorString(int, const char** text) { return *text = "an error of the stand-in", 0; }

int cuLaunchKernelEx(const Configuration* launch, void* function, void** arguments, void**) {
    const auto& kernel = *static_cast<const simt::Kernel*>(function);
    long long value[16] = {};
    if (launch->block[0] != amn::gpu::block_threads || kernel.parameters > 16 || launch->attribute_count) return 1;
    if (launch->block[1] * launch->block[2] * launch->grid[1] * launch->grid[2] != 1) return 1;
    for (int i = 0; i < kernel.parameters; ++i) std::memcpy(&value[i], arguments[i], 8);
    prepare(launch->grid[0], launch->shared, 1);
    using Any = void (*)(long long, long long, long long, long long, long long, long long, long long, long long,
                         long long, long long, long long, long long, long long, long long, long long, long long);
    reinterpret_cast<Any>(kernel.function)(value[0], value[1], value[2], value[3], value[4], value[5], value[6],
                                           value[7], value[8], value[9], value[10], value[11], value[12], value[13],
                                           value[14], value[15]);
    last_stream = reinterpret_cast<long long>(launch->stream);
    ++launches;
    return 0;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void**) {
    const Configuration launch{{x, y, z}, {bx, by, bz}, shared, stream, nullptr, 0};
    return cuLaunchKernelEx(&launch, function, arguments, nullptr);
}

int cuGetProcAddress_v2(const char* symbol, void** address, int, uint64_t, int* status) {
    Dl_info here;
    dladdr(reinterpret_cast<void*>(&cuGetProcAddress_v2), &here);
    void* self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    void* found = dlsym(self, symbol);
    if (!found) found = dlsym(self, (std::string(symbol) + "_v2").c_str());
    *address = found ? found : reinterpret_cast<void*>(&refuse);
    if (status) *status = 0;
    return 0;
}
}
