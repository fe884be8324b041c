package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// patience is how long anything may take that is to happen at once.
const patience = 30 * time.Second

// fleet is the clients of a server.
type fleet struct {
	of    *server
	conns []*websocket.Conn
	size  int // of a message, in bytes
}

// dialers is how many connections are opened at a time. A client reads only while it waits for an answer: those that came first must not have missed a ping by the time the
// last one is there.
const dialers = 16

// network is the third number of the loopback addresses that the next fleet comes from. Each has its own, for the ports of those before are not free for a minute.
var network = byte(os.Getpid())

// dial opens the connections of a server's clients, whose messages are to have that size (at least 32 bytes): client i's to url(i).
func dial(b *testing.B, s *server, count, size int, url func(i int) string) *fleet {
	b.Helper()
	f := &fleet{s, make([]*websocket.Conn, count), max(size, 32)}
	errs := make([]error, dialers)
	network++
	var all sync.WaitGroup
	for first := range dialers {
		all.Go(func() {
			for i := first; i < count && errs[first] == nil; i += dialers {
				d := websocket.Dialer{HandshakeTimeout: patience, ReadBufferSize: 1024, WriteBufferSize: 1024, NetDialContext: func(ctx context.Context, kind, address string) (net.Conn, error) {
					from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, network, byte(1+i/2_500))}}
					return from.DialContext(ctx, kind, address)
				}}
				f.conns[i], _, errs[first] = d.Dial(url(i), nil)
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		b.Fatalf("clients that connect to %s: %v", s.kind, err)
	}
	return f
}

// close ends the connections.
func (f *fleet) close() {
	for _, c := range f.conns {
		c.Close()
	}
}

// run lets all clients say something until the time is over, each what it has had back before it says more, and returns how long each message took. With an interval
// a client's message is due at fixed times, whatever became of the one before, and its time counts from there: a server that stalls is not asked less.
func (f *fleet) run(b *testing.B, during, interval time.Duration) []time.Duration {
	b.Helper()
	var (
		all  sync.WaitGroup
		took = make([][]time.Duration, len(f.conns))
		errs = make([]error, len(f.conns))
	)
	start := time.Now()
	for i, c := range f.conns {
		all.Go(func() {
			due := start.Add(interval * time.Duration(i) / time.Duration(len(f.conns)))
			for n := 0; time.Since(start) < during && due.Sub(start) < during; n++ {
				if interval > 0 {
					time.Sleep(time.Until(due))
				} else {
					due = time.Now()
				}
				if errs[i] = f.exchange(c, i, n); errs[i] != nil {
					return
				}
				took[i] = append(took[i], time.Since(due))
				due = due.Add(interval)
			}
		})
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			b.Fatalf("client %d of %s: %v", i, f.of.kind, err)
		}
	}
	whole := slices.Concat(took...)
	slices.Sort(whole)
	return whole
}

// exchange says what nobody else says, and hears it.
func (f *fleet) exchange(c *websocket.Conn, i, n int) error {
	message := bytes.Repeat([]byte{'x'}, f.size)
	var number [8]byte
	binary.BigEndian.PutUint32(number[:], uint32(i))
	binary.BigEndian.PutUint32(number[4:], uint32(n))
	hex.Encode(message, number[:])
	if err := c.WriteMessage(websocket.TextMessage, message); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(patience))
	_, answer, err := c.ReadMessage()
	if err == nil && !bytes.Equal(answer, message) {
		err = fmt.Errorf("said %.20q… and had %.20q… back", message, answer)
	}
	return err
}

// quantile returns the time within which that share of the sorted ones was done.
func quantile(sorted []time.Duration, share float64) time.Duration {
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}
