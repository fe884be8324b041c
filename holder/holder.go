// Package holder keeps what must outlive the process that serves: the listening sockets, a duplicate of each client's socket, and a table
// with what is known of each connection. The process that holds them runs the one that serves, the worker, and does almost nothing else: it
// reads nothing that a client sends, so that it has no reason to die.
package holder

import (
	"log/slog"
	"os"
	"time"
)

// Config is what a holder is to run.
type Config struct {
	Path           string     // of the program; it is looked up anew for each worker, so that a new version is taken
	Args           []string   // of a worker, its name included
	Environ        []string   // of the first worker
	Stdout, Stderr *os.File   // of the workers; nil: none
	Listeners      []Listener // that are open already; workers find them by their addresses
	Slots          int        // connections that the table has room for
	Log            *slog.Logger
	Reload         <-chan struct{} // asks for a worker from the program on disk, with the environment of the one before
	Verbose        <-chan struct{} // asks for the order Verbose to the worker that serves
	Patience       time.Duration   // how long a worker may take until it could serve
	StateDir       string          // where it is kept whose connections are open, for when everything is killed at once; empty: nowhere
	Spare          bool            // a worker is kept ready for when the one that serves dies
	Self           []string        // this process's arguments, its name included: it goes over to the program on disk once its worker has; nil: it does not
	Silence        time.Duration   // how long a worker may not answer before it is taken to hang; 0: 10s
}

// Listener is a listening socket.
type Listener struct {
	Address string
	File    *os.File // the caller's to close
}

// The causes for which a worker is told to serve.
const (
	CauseStart        = "start"
	CauseReload       = "reload"
	CauseCrash        = "crash"
	CauseHang         = "hang"
	CauseReloadFailed = "reload failed"
)

// StatusReport is how a holder is.
type StatusReport struct {
	Holder      int   // process ids
	Worker      int   // 0: none serves
	Spare       int   // of the worker that is ready to take over; 0: none is
	Lingering   []int // of workers that still hand over
	Connections int   // whose sockets are held
	Descriptors int   // of the holder
	Starts      map[string]uint64
}
