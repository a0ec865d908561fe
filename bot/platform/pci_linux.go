package platform

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// pciDevice is one device on the PCI bus; all numbers are lower-case hex of
// four digits, Class the base class and subclass.
type pciDevice struct{ class, vendor, device string }

// pciDevices reads what lspci reads.
func (p *Platform) pciDevices() []pciDevice {
	var out []pciDevice
	dirs, _ := filepath.Glob(p.path("sys/bus/pci/devices/*"))
	for _, dir := range dirs {
		hex := func(name string) string {
			data, _ := os.ReadFile(filepath.Join(dir, name))
			return strings.TrimPrefix(strings.TrimSpace(string(data)), "0x")
		}
		if class := hex("class"); len(class) >= 4 {
			out = append(out, pciDevice{class[:4], hex("vendor"), hex("device")})
		}
	}
	return out
}

const (
	vendorNvidia = "10de"
	vendorVMware = "15ad"
)

// gpuDimension returns the values of dimension gpu. A virtual display of
// VMware is none. The driver's version is known where the kernel tells it.
func (p *Platform) gpuDimension(devices []pciDevice) []string {
	var out []string
	for _, d := range devices {
		if !strings.HasPrefix(d.class, "03") || d.vendor == vendorVMware {
			continue
		}
		id := d.vendor + ":" + d.device
		out = append(out, d.vendor, id)
		var driver string
		switch d.vendor {
		case vendorNvidia:
			driver = p.word("sys/module/nvidia/version")
		case "8086", "1002":
			driver = mesaVersion(p.path("var/lib/dpkg/status"))
		}
		if driver != "" {
			out = append(out, id+"-"+driver)
		}
	}
	if out == nil {
		return []string{"none"}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// mesaVersion is that of the installed package, without the distribution's
// revision.
func mesaVersion(status string) string {
	f, err := os.Open(status)
	if err != nil {
		return ""
	}
	defer f.Close()
	in := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		switch {
		case line == "":
			in = false
		case line == "Package: libgl1-mesa-dri":
			in = true
		case in && strings.HasPrefix(line, "Version: "):
			v := strings.TrimPrefix(line, "Version: ")
			v, _, _ = strings.Cut(v, "-")
			return v
		}
	}
	return ""
}

// deviceNames lists the devices whose class starts with one of classes, by
// name where the system has a list of names; nil when there is none.
func (p *Platform) deviceNames(devices []pciDevice, classes ...string) []string {
	var found []pciDevice
	for _, d := range devices {
		if slices.ContainsFunc(classes, func(c string) bool { return strings.HasPrefix(d.class, c) }) {
			found = append(found, d)
		}
	}
	if found == nil {
		return nil
	}
	names := p.pciNames(found)
	out := make([]string, len(found))
	for i, d := range found {
		if out[i] = names[d]; out[i] == "" {
			out[i] = d.vendor + ":" + d.device
		}
	}
	slices.Sort(out)
	return out
}

// pciNames looks devices up in the list that comes with pciutils.
func (p *Platform) pciNames(want []pciDevice) map[pciDevice]string {
	out := map[pciDevice]string{}
	f, err := os.Open(p.path("usr/share/misc/pci.ids"))
	if err != nil {
		return out
	}
	defer f.Close()
	var vendor, vendorName string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		if strings.HasPrefix(line, "C ") {
			break // the classes follow
		}
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "\t\t") {
			continue
		}
		id, name, ok := strings.Cut(strings.TrimPrefix(line, "\t"), "  ")
		if !ok {
			continue
		}
		if !strings.HasPrefix(line, "\t") {
			vendor, vendorName = id, name
			continue
		}
		for _, d := range want {
			if d.vendor == vendor && d.device == id {
				out[d] = vendorName + " " + name
			}
		}
	}
	return out
}
