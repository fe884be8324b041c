package holder

// Order is what a holder tells a worker.
type Order struct {
	Kind  OrderKind
	Conns []Conn // of Take
	Start Start  // of Go
	Lost  uint32 // of Gone: a worker's serial
	Posts int    // of Lent
	Why   string // of Drain, for the log
}

// OrderKind is a kind of order.
type OrderKind byte

// The orders.
const (
	Take     OrderKind = iota + 1 // these connections are this worker's from now on
	Go                            // serve
	Suspend                       // hand over
	Drain                         // end
	Gone                          // that worker is dead: what it had and has no socket is this worker's; what has one came by Take just before
	GiveBack                      // the holder has died, and this is another one: keep all sockets anew, and say that they are
	Verbose                       // log everything for a while, or stop that
	Lent                          // so many POSTs are under way in other workers
)

// Conn is a connection that is handed to a worker.
type Conn struct {
	Slot, Gen uint32
	Fd        int // the worker's to close; -1: there is no socket
}

// Start is what a worker is told when it is to serve.
type Start struct {
	Cause     string            // start, reload, crash or hang: why this worker serves
	Lingering []uint32          // serials of earlier workers that still have connections, which come by Take
	Starts    map[string]uint64 // workers that were told to serve since the holder began, by cause, this one included
}
