// A device plugin that offers GPUs as nvidia.com/gpu and mounts a stub of NVML that sees only those a container got.
//
// A GPU whose UUID stands in the file of -unhealthy (one a line) is reported as unhealthy until it stands there no more.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	resource = "nvidia.com/gpu"
	endpoint = "gpu-of-the-tests.sock"
	library  = "/usr/local/nvidia/lib64"
	look     = 200 * time.Millisecond
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	uuids     []string
	stub      string
	unhealthy string
}

func main() {
	uuids := flag.String("uuids", "", "UUIDs of the GPUs, separated by commas")
	stub := flag.String("library", "", "folder of the machine that holds libnvidia-ml.so.1")
	unhealthy := flag.String("unhealthy", "", "file that lists the UUIDs of broken GPUs")
	flag.Parse()
	p := &plugin{uuids: strings.Split(*uuids, ","), stub: *stub, unhealthy: *unhealthy}
	for {
		if err := p.serve(); err != nil {
			log.Printf("again in a moment: %v", err)
			time.Sleep(look)
		}
	}
}

// serve registers with the kubelet and answers it until its socket is gone: a kubelet that starts removes all of them.
func (p *plugin) serve() error {
	path := filepath.Join(api.DevicePluginPath, endpoint)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	go func() {
		if err := server.Serve(listener); err != nil {
			log.Print(err)
		}
	}()
	defer server.Stop()
	if err := register(); err != nil {
		return err
	}
	for {
		time.Sleep(look)
		if _, err := os.Stat(path); err != nil {
			return err
		}
	}
}

func register() error {
	connection, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(connection).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: endpoint, ResourceName: resource, Options: &api.DevicePluginOptions{},
	})
	return err
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

func (p *plugin) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	var told []string
	for first := true; ; first = false {
		broken := p.broken()
		if first || !slices.Equal(broken, told) {
			if err := stream.Send(&api.ListAndWatchResponse{Devices: p.devices(broken)}); err != nil {
				return err
			}
			told = broken
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-time.After(look):
		}
	}
}

func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	for _, container := range request.ContainerRequests {
		uuids := slices.Sorted(slices.Values(container.DevicesIds))
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{
				"NVIDIA_VISIBLE_DEVICES": strings.Join(uuids, ","),
				"STUB_NVML_UUIDS":        strings.Join(uuids, ","),
				"LD_LIBRARY_PATH":        library,
			},
			Mounts: []*api.Mount{{ContainerPath: library, HostPath: p.stub, ReadOnly: true}},
		})
	}
	return response, nil
}

func (p *plugin) broken() []string {
	content, err := os.ReadFile(p.unhealthy)
	if err != nil {
		return nil
	}
	return strings.Fields(string(content))
}

func (p *plugin) devices(broken []string) []*api.Device {
	devices := make([]*api.Device, len(p.uuids))
	for i, uuid := range p.uuids {
		health := api.Healthy
		if slices.Contains(broken, uuid) {
			health = api.Unhealthy
		}
		devices[i] = &api.Device{ID: uuid, Health: health}
	}
	return devices
}
