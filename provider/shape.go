package provider

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// Shape names what the machines of a pool are: SHA-256 in hexadecimal over
// attributes, lifetime, timeout, server and kind. A machine whose shape is not
// its pool's is outdated. How many there are, where, and who owns them does not
// count. spec §17 D12.
func (c Config) Shape() string {
	b, err := json.Marshal(struct {
		Kind       string
		Attributes Attributes
		Lifetime   time.Duration
		Timeout    time.Duration
		Swarming   string
	}{c.Kind, c.Attributes, c.Lifetime, c.Timeout, c.Swarming})
	if err != nil {
		panic("provider: a shape does not encode: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
