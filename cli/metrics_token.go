package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// minToken keeps an empty or half-written file from opening the door.
const minToken = 16

// tokenIn returns what reads the token that a file holds.
func tokenIn(file string) func() (string, error) {
	return func() (string, error) {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		data, err := io.ReadAll(io.LimitReader(f, 64<<10))
		if err != nil {
			return "", err
		}
		token := strings.TrimSpace(string(data))
		if len(token) < minToken {
			return "", fmt.Errorf("%s holds %d characters, want at least %d", file, len(token), minToken)
		}
		return token, nil
	}
}

// metricsToken returns what the file holds, "" while it cannot be used. It must
// be good at the start.
func metricsToken(file string) (func() string, error) {
	read := tokenIn(file)
	if _, err := read(); err != nil {
		return nil, fmt.Errorf("--metrics-token-file: %w", err)
	}
	return func() string {
		token, err := read()
		if err != nil {
			return ""
		}
		return token
	}, nil
}
