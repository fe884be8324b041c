//go:build soak

package e2e

import "testing"

// The servers with the limits that they have by themselves: from 1 s (Starman) to 20 s (Puma, Tomcat).
func TestSoakAtTheServersOwnIdleLimits(t *testing.T) {
	onEachServer(t, func(t *testing.T, server backendServer) {
		keepAlive := 0
		if server.name == "PHP-FPM behind nginx" {
			keepAlive = 20 // in place of 75 s
		}
		sweepIdleLimit(t, server, keepAlive, 50)
	})
}
