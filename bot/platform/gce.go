package platform

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
)

// metadataServer answers on Compute Engine only. It is named by address, so
// that nothing waits for a name.
const metadataServer = "http://169.254.169.254/computeMetadata/v1/"

// metadata returns one value, "" if there is none.
func metadata(ctx context.Context, key string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, metadataServer+key, nil)
	if err != nil {
		return ""
	}
	req.Header.Set("Metadata-Flavor", "Google")
	tr := &http.Transport{DisableKeepAlives: true}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil || res.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

// gceDimensions adds image, zone and gcp. spec bot.md §7.1.
func gceDimensions(ask func(key string) string, d map[string][]string) {
	if v := lastElement(ask("instance/image")); v != "" {
		d["image"] = []string{v}
	}
	if v := zones(lastElement(ask("instance/zone"))); v != nil {
		d["zone"] = v
	}
	if v := ask("project/project-id"); v != "" {
		d["gcp"] = []string{v}
	}
}

func lastElement(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// zones of "us-central1-a" are "us", "us-central", "us-central1" and itself.
func zones(zone string) []string {
	parts := strings.Split(zone, "-")
	if len(parts) != 3 {
		return nil
	}
	out := []string{
		parts[0],
		parts[0] + "-" + strings.TrimRight(parts[1], "0123456789"),
		parts[0] + "-" + parts[1],
		zone,
	}
	slices.Sort(out)
	return slices.Compact(out)
}
