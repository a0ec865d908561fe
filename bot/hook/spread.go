package hook

import (
	"crypto/md5" // spreads, protects nothing
	"math"
)

// PseudoRand is constant for a bot and differs between bots: ± width, rounded
// to four decimals. spec bot.md §6.3.
func PseudoRand(id string, width float64) float64 {
	sum := md5.Sum([]byte(id))
	v := float64(int16(uint16(sum[0])|uint16(sum[1])<<8)) / 32768
	return math.Round(v*width*1e4) / 1e4
}
