package bench

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// BenchmarkFanout prints the server's processor time for each delivery of what is pushed to a group, by the group's size. One push follows the other as soon as
// every member has it: of pushes close behind each other nchan, set up so, has lost some.
func BenchmarkFanout(b *testing.B) {
	const deliveries = 200_000
	bed := newBed(b)
	for _, members := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprintf("%d_members", members), func(b *testing.B) {
			compare(b, "members", "members", fmt.Sprint(members), []string{"wsbridge", "nchan"}, "us/delivery", func(kind string) float64 { return delivery(b, bed, kind, members, deliveries/members) })
		})
	}
}

// settle is how long nchan may take behind its 101 until a client hears what is pushed: it says nothing when that is so.
const settle = time.Second

// delivery returns the processor time of one delivery, in microseconds.
func delivery(b *testing.B, bed *bed, kind string, members, pushes int) float64 {
	b.Helper()
	s := bed.start(b, kind)
	defer s.stop()
	f := dial(b, s, members, 0, s.group)
	defer f.close()
	time.Sleep(settle)
	heard := make(chan error, members)
	for i, c := range f.conns {
		go func() {
			for n := range pushes {
				c.SetReadDeadline(time.Now().Add(patience))
				_, message, err := c.ReadMessage()
				if err == nil && string(message) != pushed(n) {
					err = fmt.Errorf("had %q, want %q", message, pushed(n))
				}
				if err != nil {
					heard <- fmt.Errorf("member %d of %s: %w", i, kind, err)
					return
				}
				heard <- nil
			}
		}()
	}
	before := s.cpu(b)
	for n := range pushes {
		resp, err := http.Post("http://"+s.push+"/groups/all", "text/plain", strings.NewReader(pushed(n)))
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body) // or the next push needs a connection of its own
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			b.Fatalf("push %d to %s: %s", n, kind, resp.Status)
		}
		for range members {
			if err := <-heard; err != nil {
				b.Fatal(err)
			}
		}
	}
	return float64((s.cpu(b) - before).Microseconds()) / float64(members*pushes)
}

// pushed is the message with that number: 128 bytes.
func pushed(n int) string { return fmt.Sprintf("%0128d", n) }
