//go:build soak

package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// TestSoakCrashes kills and reloads for ten minutes, or as long as WSBRIDGE_SOAK says.
func TestSoakCrashes(t *testing.T) {
	long := 10 * time.Minute
	if text := os.Getenv("WSBRIDGE_SOAK"); text != "" {
		var err error
		if long, err = time.ParseDuration(text); err != nil {
			t.Fatalf("WSBRIDGE_SOAK: %v", err)
		}
	}
	end := time.Now().Add(long)
	for round := 1; time.Now().Before(end) && !t.Failed(); round++ {
		t.Run(fmt.Sprint("round ", round), func(t *testing.T) {
			t.Run("killed", TestKilledAgainAndAgain)
			t.Run("killed without repeats", TestKilledWithoutRepeats)
			t.Run("reloaded", TestReloadedAgainAndAgain)
			t.Run("killed and reloaded", TestKilledAndReloadedAtOnce)
			t.Run("killed behind nginx", TestKilledBehindNginx)
			t.Run("killed on a unix socket", TestKilledOnAUnixSocket)
		})
	}
}
