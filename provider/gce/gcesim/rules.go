package gcesim

import (
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Each rule says where it is from: "discovery" is Google's discovery document,
// by the text of a description where it has no field for the rule; "spec" is
// spec/provider.md; "assumed" is what we know of Compute Engine without a
// source in this tree, and is listed in docs/gcesim.md.

const (
	maxTags          = 64      // assumed: limits of tags
	maxLabels        = 64      // assumed: requirements for labels
	maxMetadataValue = 262144  // discovery: Metadata.items.value
	maxMetadata      = 512_000 // discovery: Metadata.items, "less than 512 KB"
	minDiskGB        = 10      // discovery: AttachedDiskInitializeParams.diskSizeGb
)

var (
	machineTypeForm = regexp.MustCompile(`^(?:projects/[^/]+/)?zones/([a-z][-a-z0-9]*)/machineTypes/[a-z][-a-z0-9]{0,62}$`)               // discovery: Instance.machineType
	diskTypeForm    = regexp.MustCompile(`^(?:projects/[^/]+/)?zones/([a-z][-a-z0-9]*)/diskTypes/([a-z][-a-z0-9]{0,62})$`)                // discovery: AttachedDiskInitializeParams.diskType
	imageForm       = regexp.MustCompile(`^(?:projects/[^/]+/)?global/images/(?:family/)?[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?$`)             // discovery: AttachedDiskInitializeParams.sourceImage
	networkForm     = regexp.MustCompile(`^(?:projects/[^/]+/)?global/networks/[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?$`)                       // discovery: NetworkInterface.network
	subnetworkForm  = regexp.MustCompile(`^(?:projects/[^/]+/)?regions/([a-z][-a-z0-9]*)/subnetworks/[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?$`) // discovery: NetworkInterface.subnetwork
	labelKey        = regexp.MustCompile(`^[\p{Ll}\p{Lo}][\p{Ll}\p{Lo}\p{N}_-]{0,62}$`)                                                   // assumed: requirements for labels
	labelValue      = regexp.MustCompile(`^[\p{Ll}\p{Lo}\p{N}_-]{0,63}$`)                                                                 // assumed: the same
)

// partial is a URL of a resource without the API's own part.
func partial(link string) string {
	for _, root := range []string{"https://www.googleapis.com/compute/", "https://compute.googleapis.com/compute/"} {
		if rest, ok := strings.CutPrefix(link, root); ok {
			_, rest, _ = strings.Cut(rest, "/") // the version
			return rest
		}
	}
	return link
}

func badField(field, value, format string, args ...any) *refusal {
	return invalid("Invalid value for field 'resource.%s': '%s'. %s", field, clip(value), fmt.Sprintf(format, args...))
}

// checkInstance holds a body, which fits the document, against what the
// document cannot say.
func checkInstance(body map[string]any, zone string) *refusal {
	for _, rule := range []func(map[string]any, string) *refusal{
		checkMachine, checkDisks, checkNetworks, checkMetadata, checkTags, checkLabels, checkAccounts, checkScheduling,
	} {
		if r := rule(body, zone); r != nil {
			return r
		}
	}
	return nil
}

func checkMachine(body map[string]any, zone string) *refusal {
	link := text(body["machineType"])
	m := machineTypeForm.FindStringSubmatch(partial(link))
	switch {
	case link == "": // assumed: no instance without one, but for those of templates
		return refuse(http.StatusBadRequest, "required", "Required field 'resource.machineType' not specified")
	case m == nil:
		return badField("machineType", link, "The URL is malformed.")
	case m[1] != zone: // assumed
		return badField("machineType", link, "Machine type specified must be in the same zone as the instance: %s", zone)
	}
	return nil
}

func checkDisks(body map[string]any, zone string) *refusal {
	disks := list(body["disks"])
	if len(disks) == 0 { // assumed; spec §3 asks for one
		return badField("disks", "", "No disks are specified.")
	}
	for n, v := range disks {
		d := object(v)
		at := "disks[" + strconv.Itoa(n) + "]"
		if boot, _ := d["boot"].(bool); boot != (n == 0) { // discovery: AttachedDisk.index, "0 is reserved for the boot disk"
			return badField(at+".boot", fmt.Sprint(boot), "Boot disk must be the first disk attached to the instance.")
		}
		if r := checkDisk(d, n, at, zone); r != nil {
			return r
		}
	}
	return nil
}

func checkDisk(d map[string]any, n int, at, zone string) *refusal {
	params := object(d["initializeParams"])
	if text(d["source"]) != "" {
		if params != nil { // discovery: AttachedDisk.initializeParams is for new disks
			return badField(at, "", "Both source and initializeParams are specified.")
		}
		return nil
	}
	link, image := text(params["diskType"]), text(params["sourceImage"])
	kind := "pd-standard" // discovery: AttachedDiskInitializeParams.diskType, the default
	if link != "" {
		m := diskTypeForm.FindStringSubmatch(partial(link))
		if m == nil {
			return badField(at+".initializeParams.diskType", link, "The URL is malformed.")
		}
		if m[1] != zone { // assumed
			return badField(at+".initializeParams.diskType", link, "Disk type must be in the same zone as the instance: %s", zone)
		}
		kind = m[2]
	}
	local := kind == "local-ssd"
	if scratch := text(d["type"]) == "SCRATCH"; scratch != local { // assumed
		return badField(at+".type", text(d["type"]), "Scratch disks and disks of type local-ssd are the same.")
	}
	if image != "" && !imageForm.MatchString(partial(image)) {
		return badField(at+".initializeParams.sourceImage", image, "The URL is malformed.")
	}
	if n == 0 && image == "" && text(params["sourceSnapshot"]) == "" { // discovery: AttachedDiskInitializeParams.sourceImage
		return badField(at, "", "Boot disk must have a source specified")
	}
	if local && (image != "" || n == 0) { // assumed; spec §3
		return badField(at+".initializeParams.sourceImage", image, "A local SSD has no image and is not booted from.")
	}
	if size, err := strconv.ParseInt(number64(params["diskSizeGb"]), 10, 64); err == nil && size != 0 {
		switch {
		case size < minDiskGB:
			return badField(at+".initializeParams.diskSizeGb", strconv.FormatInt(size, 10), "Disk size must be at least %d GB", minDiskGB)
		case local && size%375 != 0: // assumed
			return badField(at+".initializeParams.diskSizeGb", strconv.FormatInt(size, 10), "A local SSD has 375 GB")
		}
	}
	for _, field := range []string{"provisionedIops", "provisionedThroughput"} {
		v := number64(params[field])
		if v != "" && v != "0" && !strings.Contains(kind, "hyperdisk") && (kind != "pd-extreme" || field != "provisionedIops") { // assumed; spec §3
			return badField(at+".initializeParams."+field, v, "Disks of type %s are not provisioned", kind)
		}
	}
	return nil
}

// number64 is a number that stands in a string.
func number64(v any) string { return text(v) }

func checkNetworks(body map[string]any, zone string) *refusal {
	nics := list(body["networkInterfaces"])
	if len(nics) == 0 { // assumed; spec §3 asks for one
		return badField("networkInterfaces", "", "At least one network interface is required.")
	}
	for n, v := range nics {
		nic := object(v)
		at := "networkInterfaces[" + strconv.Itoa(n) + "]"
		if link := text(nic["network"]); link != "" && !networkForm.MatchString(partial(link)) {
			return badField(at+".network", link, "The URL is malformed.")
		}
		if link := text(nic["subnetwork"]); link != "" {
			m := subnetworkForm.FindStringSubmatch(partial(link))
			if m == nil {
				return badField(at+".subnetwork", link, "The URL is malformed.")
			}
			if m[1] != regionOf(zone) { // assumed
				return badField(at+".subnetwork", link, "Subnetwork must be in region %s", regionOf(zone))
			}
		}
		access := list(nic["accessConfigs"])
		if len(access) > 1 { // discovery: NetworkInterface.accessConfigs
			return badField(at+".accessConfigs", "", "At most one access config currently supported.")
		}
		for _, a := range access {
			if kind := text(object(a)["type"]); kind != "" && kind != "ONE_TO_ONE_NAT" { // discovery: AccessConfig.type
				return badField(at+".accessConfigs[0].type", kind, "The only type is ONE_TO_ONE_NAT.")
			}
		}
	}
	return nil
}

func checkMetadata(body map[string]any, _ string) *refusal {
	seen, total := map[string]bool{}, 0
	for _, v := range list(object(body["metadata"])["items"]) {
		key, value := text(object(v)["key"]), text(object(v)["value"])
		if seen[key] { // assumed
			return badField("metadata", key, "Metadata has duplicate key: %s", clip(key))
		}
		seen[key] = true
		if total += len(key) + len(value); len(value) > maxMetadataValue || total >= maxMetadata {
			return badField("metadata.items", key, "Value for metadata key or all of them together are too large")
		}
	}
	return nil
}

func checkTags(body map[string]any, _ string) *refusal {
	tags := list(object(body["tags"])["items"])
	if len(tags) > maxTags {
		return badField("tags", strconv.Itoa(len(tags)), "At most %d tags", maxTags)
	}
	seen := map[string]bool{}
	for _, v := range tags {
		if seen[text(v)] { // assumed
			return badField("tags", text(v), "Duplicate tags.")
		}
		seen[text(v)] = true
	}
	return nil
}

func checkLabels(body map[string]any, _ string) *refusal {
	labels := object(body["labels"])
	if len(labels) > maxLabels {
		return badField("labels", strconv.Itoa(len(labels)), "At most %d labels", maxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !labelKey.MatchString(k) {
			return badField("labels", k, "Label key must match %s", labelKey)
		}
		if v := text(labels[k]); !labelValue.MatchString(v) {
			return badField("labels", v, "Label value must match %s", labelValue)
		}
	}
	return nil
}

func checkAccounts(body map[string]any, _ string) *refusal {
	accounts := list(body["serviceAccounts"])
	if len(accounts) > 1 { // discovery: Instance.serviceAccounts
		return badField("serviceAccounts", "", "At most one service account")
	}
	for _, a := range accounts {
		if email := text(object(a)["email"]); email != "default" && !strings.Contains(email, "@") { // assumed
			return badField("serviceAccounts[0].email", email, "The user does not exist")
		}
	}
	return nil
}

func checkScheduling(body map[string]any, _ string) *refusal {
	scheduling := object(body["scheduling"])
	if on, _ := object(body["confidentialInstanceConfig"])["enableConfidentialCompute"].(bool); on && text(scheduling["onHostMaintenance"]) != "TERMINATE" { // spec §2.4
		return badField("scheduling.onHostMaintenance", text(scheduling["onHostMaintenance"]), "Confidential instances must terminate on maintenance")
	}
	for n, v := range list(scheduling["nodeAffinities"]) {
		a := object(v)
		if text(a["key"]) == "" || text(a["operator"]) == "" || len(list(a["values"])) == 0 { // assumed
			return badField("scheduling.nodeAffinities["+strconv.Itoa(n)+"]", text(a["key"]), "Key, operator and values are required")
		}
	}
	return nil
}
