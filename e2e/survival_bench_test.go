//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wsbridge/holder"
)

// BenchmarkSurvival prints what it costs that connections outlive the worker: processor time for a message and memory for an idle connection,
// with and without a holder in turn, and how long a client waits for its answer when the worker is killed.
func BenchmarkSurvival(b *testing.B) {
	path := filepath.Join(b.TempDir(), "wsbridge")
	build := exec.Command("go", "build", "-trimpath", "-o", path, "wsbridge/cmd/wsbridge")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("the program does not build: %v\n%s", err, out)
	}
	backend := fastBackend(b)
	b.Run("message", func(b *testing.B) {
		for range b.N {
			costs := map[string][]float64{}
			for range 3 {
				for _, held := range []string{"off", "on"} {
					s := startMeasured(b, path, backend, held)
					costs[held] = append(costs[held], s.messageCost(b, 64))
					s.stop()
				}
			}
			off, on := median(costs["off"]), median(costs["on"])
			fmt.Printf("message, 64 clients: %.1f us of processor without a holder %.1f, with it %.1f %.1f: %.2f\n", off, costs["off"], on, costs["on"], on/off)
		}
	})
	const many = 10_000
	b.Run("memory", func(b *testing.B) {
		for range b.N {
			memory := map[string]float64{}
			for _, held := range []string{"off", "on"} {
				s := startMeasured(b, path, backend, held)
				if held == "on" {
					s.awaitSpare(b) // which is there whatever the connections
				}
				before := s.memory(b)
				conns := s.idle(b, many)
				time.Sleep(8 * time.Second) // they are parked after five, and the memory goes back within two
				memory[held] = float64(s.memory(b)-before) / many
				for _, c := range conns {
					c.Close()
				}
				s.stop()
			}
			fmt.Printf("idle connection: %.0f bytes without a holder, %.0f with it (both processes and the table)\n", memory["off"], memory["on"])
		}
	})
	b.Run("killed", func(b *testing.B) {
		for range b.N {
			for _, n := range []int{1000, many} {
				s := startMeasured(b, path, backend, "on")
				conns := s.idle(b, n)
				var waits []float64
				for i := range 7 {
					waits = append(waits, s.killed(b, conns[i*n/7]))
				}
				fmt.Printf("killed with %d connections: first answer after %.1f ms (median; %.1f)\n", n, median(waits), waits)
				for _, c := range conns {
					c.Close()
				}
				s.stop()
			}
		}
	})
}

// measured is a program whose cost is measured.
type measured struct {
	process         *exec.Cmd
	clients, pushes string
}

// fastBackend returns the address of a backend that says as little as it can.
func fastBackend(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "text/plain")
		if r.Header.Get("ce-type") == "wsbridge.message" {
			w.Write(body)
		}
	}))
	return l.Addr().String()
}

func startMeasured(b *testing.B, path, backend, held string) *measured {
	b.Helper()
	s := &measured{process: exec.Command(path)}
	for _, address := range []*string{&s.clients, &s.pushes} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		*address = l.Addr().String()
		l.Close()
	}
	foreign := slices.DeleteFunc(os.Environ(), func(setting string) bool { return strings.HasPrefix(setting, "WSBRIDGE_") }) // make bench has one for the tables
	s.process.Env = append(foreign, "WSBRIDGE_BACKEND_URL=http://"+backend+"/", "WSBRIDGE_LISTEN="+s.clients, "WSBRIDGE_PUSH_LISTEN="+s.pushes,
		"WSBRIDGE_HOLDER="+held, "WSBRIDGE_LOG_LEVEL=error", "WSBRIDGE_DRAIN_TIMEOUT=1s", "WSBRIDGE_PING_INTERVAL=1h")
	if err := s.process.Start(); err != nil {
		b.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if answer, err := http.Get("http://" + s.pushes + "/readyz"); err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return s
			}
		}
		if time.Now().After(end) {
			b.Fatal("the program is not ready")
		}
	}
}

// awaitSpare waits until the worker that waits for the other's end is ready.
func (s *measured) awaitSpare(b *testing.B) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if status, err := holder.Status(b.Context(), s.process.Process.Pid); err == nil && status.Spare != 0 {
			return
		}
	}
	b.Fatal("no spare worker is ready")
}

func (s *measured) stop() {
	s.process.Process.Signal(syscall.SIGTERM)
	s.process.Wait()
}

// processes returns the process ids of holder and worker.
func (s *measured) processes(b *testing.B) []int {
	pid := s.process.Process.Pid
	workers, err := children(pid)
	if err != nil {
		b.Fatal(err)
	}
	return append([]int{pid}, workers...)
}

// cpu returns the processor time of all processes so far.
func (s *measured) cpu(b *testing.B) time.Duration {
	total := 0
	for _, pid := range s.processes(b) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			b.Fatal(err)
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, field := range fields[11:13] { // utime and stime, in hundredths of a second
			n, _ := strconv.Atoi(field)
			total += n
		}
	}
	return time.Duration(total) * 10 * time.Millisecond
}

// memory returns the memory of all processes, in bytes, shared pages once.
func (s *measured) memory(b *testing.B) int {
	total := 0
	for _, pid := range s.processes(b) {
		smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(smaps)) {
			if value, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.Atoi(strings.Fields(value)[0])
				total += n << 10
			}
		}
	}
	return total
}

func (s *measured) dial(b *testing.B) (net.Conn, *bufio.Reader) {
	b.Helper()
	c, err := net.Dial("tcp", s.clients)
	if err != nil {
		b.Fatal(err)
	}
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", s.clients)
	r := bufio.NewReaderSize(c, 512)
	answer, err := http.ReadResponse(r, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		b.Fatalf("handshake: %v, %v", answer, err)
	}
	return c, r
}

// idle opens connections, and lets each have an exchange.
func (s *measured) idle(b *testing.B, n int) []net.Conn {
	conns := make([]net.Conn, n)
	var dialing sync.WaitGroup
	for worker := range 16 {
		dialing.Go(func() {
			for i := worker; i < n; i += 16 {
				c, r := s.dial(b)
				exchange(b, c, r)
				conns[i] = c
			}
		})
	}
	dialing.Wait()
	return conns
}

// exchange sends a message of 64 bytes and reads it back.
func exchange(b *testing.B, c net.Conn, r *bufio.Reader) {
	message := make([]byte, 6+64)
	message[0], message[1] = 0x81, 0x80|64
	for i := range 64 {
		message[6+i] = 'x'
	}
	if _, err := c.Write(message); err != nil {
		b.Error(err)
		return
	}
	if ping, err := r.Peek(2); err == nil && ping[0] == 0x89 { // of a heartbeat, the first of which may come at any time
		r.Discard(2 + int(ping[1]))
	}
	answer := make([]byte, 2+64)
	if _, err := io.ReadFull(r, answer); err != nil || answer[0] != 0x81 || answer[1] != 64 {
		b.Errorf("answer %x, %v", answer[:2], err)
	}
}

// messageCost returns the processor time of a message with so many clients, in microseconds.
func (s *measured) messageCost(b *testing.B, clients int) float64 {
	var total int
	var mu sync.Mutex
	start := s.cpu(b)
	var running sync.WaitGroup
	end := time.Now().Add(3 * time.Second)
	for range clients {
		c, r := s.dial(b)
		running.Go(func() {
			n := 0
			for ; time.Now().Before(end); n++ {
				exchange(b, c, r)
			}
			mu.Lock()
			total += n
			mu.Unlock()
			c.Close()
		})
	}
	running.Wait()
	return float64((s.cpu(b) - start).Microseconds()) / float64(total)
}

// killed kills the worker, and returns how long the client then waits for an answer, in milliseconds.
func (s *measured) killed(b *testing.B, c net.Conn) float64 {
	status, err := holder.Status(b.Context(), s.process.Process.Pid)
	if err != nil || status.Worker == 0 {
		b.Fatalf("no worker: %+v, %v", status, err)
	}
	syscall.Kill(status.Worker, syscall.SIGKILL)
	start := time.Now()
	exchange(b, c, bufio.NewReader(c))
	waited := time.Since(start).Seconds() * 1000
	for { // the next kill is not one of a row
		if next, err := holder.Status(b.Context(), s.process.Process.Pid); err == nil && next.Worker != 0 && next.Worker != status.Worker {
			s.awaitSpare(b)
			return waited
		}
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
