/* A stand-in for NVIDIA's libnvidia-ml.so.1 with three GPUs, the third of which can be split into MIG instances.

   STUB_NVML_GPUS   how many GPUs there are (default 3)
   STUB_NVML_MIG    1: the third GPU is in MIG mode, with instances in slots 0 and 2
   STUB_NVML_FAIL   function=code: that function answers this NVML error
   STUB_NVML_UUIDS  instead of the three: GPUs with these UUIDs, separated by commas, all of the first one's kind and
                    with nothing on them but what a driver keeps for itself; a container of the tests' device plugin
                    sees those that it got
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

struct device {
    const char *uuid, *name, *bus;
    unsigned long long total, free_;
};

struct memory { unsigned long long total, free_, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free_, used; };
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };

#define MIB (1ULL << 20)
static struct device gpus[] = {
    {"GPU-c1c1c1c1-0000-0000-0000-000000000000", "NVIDIA A100-SXM4-40GB", "00000000:C1:00.0", 40960 * MIB, 40000 * MIB},
    {"GPU-65656565-0000-0000-0000-000000000001", "NVIDIA A100-SXM4-40GB", "00000000:65:00.0", 40960 * MIB, 400 * MIB},
    {"GPU-ca0ca0ca-0000-0000-0000-000000000002", "NVIDIA H100 80GB HBM3", "00000000:CA:00.0", 81559 * MIB, 80000 * MIB},
};
static struct device instances[] = {
    {"MIG-11111111-0000-0000-0000-000000000003", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "", 9856 * MIB, 9800 * MIB},
    {NULL, NULL, NULL, 0, 0},
    {"MIG-22222222-0000-0000-0000-000000000004", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "", 40192 * MIB, 40000 * MIB},
};

enum { MOST = 16, KEPT_MIB = 572 };
static struct device chosen[MOST];
static char uuids[1024], buses[MOST][24];

/* How many GPUs STUB_NVML_UUIDS names; 0 where it is not set. */
static unsigned choose(void) {
    const char *list = getenv("STUB_NVML_UUIDS");
    unsigned count = 0;
    snprintf(uuids, sizeof uuids, "%s", list ? list : "");
    for (char *uuid = strtok(uuids, ","); uuid && count < MOST; uuid = strtok(NULL, ",")) {
        const char *dash = strrchr(uuid, '-');
        snprintf(buses[count], sizeof buses[count], "00000000:%02X:00.0", 16 + (dash ? atoi(dash + 1) % 200 : 0));
        chosen[count] = (struct device){uuid, gpus[0].name, buses[count], gpus[0].total, gpus[0].total - KEPT_MIB * MIB};
        count++;
    }
    return count;
}

static int failure(const char *function) {
    const char *fail = getenv("STUB_NVML_FAIL");
    size_t length = strlen(function);
    if (fail && !strncmp(fail, function, length) && fail[length] == '=') return atoi(fail + length + 1);
    return SUCCESS;
}
#define MAY_FAIL() do { int code = failure(__func__); if (code) return code; } while (0)

int nvmlInitWithFlags(unsigned flags) { (void)flags; MAY_FAIL(); return SUCCESS; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "stub error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    MAY_FAIL();
    const char *number = getenv("STUB_NVML_GPUS");
    *count = getenv("STUB_NVML_UUIDS") ? choose() : number ? (unsigned)atoi(number) : 3;
    return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **device) {
    if (index == 0) MAY_FAIL();
    unsigned count = choose();
    if (index >= (count ? count : 3)) return INVALID_ARGUMENT;
    *device = count ? &chosen[index] : &gpus[index];
    return SUCCESS;
}
int nvmlDeviceGetUUID(struct device *device, char *text, unsigned size) {
    MAY_FAIL();
    snprintf(text, size, "%s", device->uuid);
    return SUCCESS;
}
int nvmlDeviceGetName(struct device *device, char *text, unsigned size) {
    MAY_FAIL();
    snprintf(text, size, "%s", device->name);
    return SUCCESS;
}
int nvmlDeviceGetPciInfo_v3(struct device *device, struct pci *pci) {
    MAY_FAIL();
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%s", device->bus);
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(struct device *device, struct memory *memory) {
    MAY_FAIL();
    *memory = (struct memory){device->total, device->free_, device->total - device->free_};
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory_v2 *memory) {
    MAY_FAIL();
    memory->total = device->total;
    memory->reserved = 0;
    memory->free_ = device->free_;
    memory->used = device->total - device->free_;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending) {
    MAY_FAIL();
    if (device != &gpus[1] && device != &gpus[2]) return NOT_SUPPORTED;
    const char *mig = getenv("STUB_NVML_MIG");
    *current = *pending = device == &gpus[2] && mig && !strcmp(mig, "1");
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned *count) {
    (void)device;
    *count = 3;
    return SUCCESS;
}
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index, struct device **instance) {
    (void)device;
    if (index >= 3 || !instances[index].uuid) return NOT_FOUND;
    *instance = &instances[index];
    return SUCCESS;
}
