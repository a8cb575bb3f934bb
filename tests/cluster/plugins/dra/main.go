// A DRA driver that publishes GPUs as gpu.nvidia.com does, in ResourceSlices, and hands claimed ones to containers
// through CDI: the stub of NVML, which sees only those that the container got.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

const (
	driver  = "gpu.nvidia.com"
	library = "/usr/local/nvidia/lib64"
	folder  = "/var/lib/kubelet/plugins/" + driver
)

type plugin struct {
	uuids map[string]string
	stub  string
	cdi   string
}

func main() {
	node := flag.String("node", "", "name of the node")
	uuids := flag.String("uuids", "", "UUIDs of the GPUs, separated by commas")
	product := flag.String("product", "NVIDIA A100-SXM4-40GB", "what the GPUs are")
	memory := flag.String("memory", "40Gi", "memory of each")
	stub := flag.String("library", "", "folder of the machine that holds libnvidia-ml.so.1")
	cdi := flag.String("cdi", "/var/run/cdi", "folder of CDI specifications")
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *node, strings.Split(*uuids, ","), *product, *memory, *stub, *cdi, *kubeconfig); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, node string, uuids []string, product, memory, stub, cdi, kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for _, path := range []string{folder, cdi} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	}
	p := &plugin{uuids: map[string]string{}, stub: stub, cdi: cdi}
	var devices []resourceapi.Device
	for i, uuid := range uuids {
		name := fmt.Sprintf("gpu-%d", i)
		p.uuids[name] = uuid
		devices = append(devices, device(name, uuid, product, memory))
	}
	helper, err := kubeletplugin.Start(ctx, p,
		kubeletplugin.DriverName(driver), kubeletplugin.NodeName(node), kubeletplugin.KubeClient(client),
		kubeletplugin.PluginDataDirectoryPath(folder))
	if err != nil {
		return err
	}
	defer helper.Stop()
	pool := resourceslice.Pool{Slices: []resourceslice.Slice{{Devices: devices}}}
	if err := helper.PublishResources(ctx, resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{node: pool}}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func device(name, uuid, product, memory string) resourceapi.Device {
	text := func(value string) resourceapi.DeviceAttribute {
		return resourceapi.DeviceAttribute{StringValue: &value}
	}
	return resourceapi.Device{
		Name: name,
		Attributes: map[resourceapi.QualifiedName]resourceapi.DeviceAttribute{
			"type": text("gpu"), "uuid": text(uuid), "productName": text(product),
		},
		Capacity: map[resourceapi.QualifiedName]resourceapi.DeviceCapacity{"memory": {Value: resource.MustParse(memory)}},
	}
}

// PrepareResourceClaims writes one CDI specification a claim, with one device that stands for all GPUs of the claim.
func (p *plugin) PrepareResourceClaims(_ context.Context, claims []*resourceapi.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	results := map[types.UID]kubeletplugin.PrepareResult{}
	for _, claim := range claims {
		results[claim.UID] = p.prepare(claim)
	}
	return results, nil
}

func (p *plugin) prepare(claim *resourceapi.ResourceClaim) kubeletplugin.PrepareResult {
	id := fmt.Sprintf("%s/claim=%s", driver, claim.UID)
	var devices []kubeletplugin.Device
	var uuids []string
	for _, result := range claim.Status.Allocation.Devices.Results {
		if result.Driver != driver {
			continue
		}
		uuids = append(uuids, p.uuids[result.Device])
		devices = append(devices, kubeletplugin.Device{
			Requests: []string{result.Request}, PoolName: result.Pool, DeviceName: result.Device, CDIDeviceIDs: []string{id},
		})
	}
	visible := strings.Join(uuids, ",")
	edits := map[string]any{
		"env":    []string{"NVIDIA_VISIBLE_DEVICES=" + visible, "STUB_NVML_UUIDS=" + visible, "LD_LIBRARY_PATH=" + library},
		"mounts": []any{map[string]any{"hostPath": p.stub, "containerPath": library, "options": []string{"ro", "bind"}}},
	}
	specification, err := json.Marshal(map[string]any{
		"cdiVersion": "0.5.0",
		"kind":       driver + "/claim",
		"devices":    []any{map[string]any{"name": string(claim.UID), "containerEdits": edits}},
	})
	if err == nil {
		err = os.WriteFile(p.specification(claim.UID), specification, 0o644)
	}
	return kubeletplugin.PrepareResult{Devices: devices, Err: err}
}

// UnprepareResourceClaims takes the specifications away; fine where they are gone.
func (p *plugin) UnprepareResourceClaims(_ context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	results := map[types.UID]error{}
	for _, claim := range claims {
		err := os.Remove(p.specification(claim.UID))
		if os.IsNotExist(err) {
			err = nil
		}
		results[claim.UID] = err
	}
	return results, nil
}

// HandleError says what went wrong in the background; the helper tries again by itself.
func (p *plugin) HandleError(_ context.Context, err error, message string) {
	log.Printf("%s: %v", message, err)
}

func (p *plugin) specification(claim types.UID) string {
	return filepath.Join(p.cdi, "claim-"+string(claim)+".json")
}
