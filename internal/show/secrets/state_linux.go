package secrets

import (
	"encoding/json"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// isolation is what a bot says of how tasks are kept from it.
func isolation(b *pb.BotInfo) string {
	var st struct {
		Skep struct {
			Isolation string `json:"isolation"`
		} `json:"skep"`
	}
	_ = json.Unmarshal([]byte(b.State), &st)
	return st.Skep.Isolation
}
