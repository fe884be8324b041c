package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"wsbridge/holder"
)

// workerCommand is what a holder runs this program with. It is nobody else's to use.
const workerCommand = "worker"

// spareSlots is how many connections a table has room for beyond those that are allowed when it is made: a reload may allow more, and disconnect
// events that wait have slots too. Those that nobody uses take no memory.
const spareSlots = 100_000

// hold runs workers, keeps what outlives them, and returns when they have drained.
func hold(ctx context.Context, s settings, environ []string, stdout, stderr io.Writer) error {
	path, err := os.Executable()
	if err != nil {
		return fmt.Errorf("WSBRIDGE_HOLDER: this program's file can't be found, from which workers are started: %w", err)
	}
	reload, verbose := make(chan struct{}, 1), make(chan struct{}, 1)
	tell := func(c chan struct{}) func() {
		return func() {
			select {
			case c <- struct{}{}:
			default: // one is on its way
			}
		}
	}
	defer onSignal(syscall.SIGHUP, tell(reload))()
	defer onSignal(syscall.SIGUSR1, tell(verbose))()
	out, done, err := fileFor(stdout)
	if err != nil {
		return err
	}
	defer done()
	errs, done, err := fileFor(stderr)
	if err != nil {
		return err
	}
	defer done()
	var self []string
	if out == stdout && errs == stderr { // another program knows nothing of a pipe to a writer
		self = os.Args
	}
	log, _ := newLogger(s, stderr)
	exit, err := holder.Run(ctx, holder.Config{
		Path: path, Args: []string{"wsbridge", workerCommand}, Environ: environ, Stdout: out, Stderr: errs,
		Slots: 2*s.Bridge.MaxConnections + s.Bridge.GoodbyeMax + spareSlots, Log: log, Reload: reload, Verbose: verbose, Patience: 30 * time.Second,
		StateDir: s.Bridge.StateDir, Spare: true, Self: self,
	})
	if err != nil {
		return err
	}
	if exit != 0 {
		return exited(exit)
	}
	return nil
}

// exited is the exit code of a worker, which has said why by itself.
type exited int

// Error returns the code in words.
func (e exited) Error() string { return fmt.Sprintf("the worker ended with exit code %d", int(e)) }

// fileFor returns a file that a worker may write to in the place of w, and what closes it when no worker is left.
func fileFor(w io.Writer) (file *os.File, done func(), err error) {
	if file, ok := w.(*os.File); ok {
		return file, func() {}, nil
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	copied := make(chan struct{})
	go func() {
		io.Copy(w, out)
		close(copied)
	}()
	return in, func() {
		in.Close()
		<-copied
		out.Close()
	}, nil
}

// work serves as a worker, until its holder tells it to end or is gone.
func work(environ []string, stderr io.Writer) error {
	// The holder hears of them too, and says what is to be done.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1)
	link, ok, err := holder.Attach()
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("worker: this is started by wsbridge itself, for the connections that it holds")
	}
	s, faults := parse(environ)
	if err = errors.Join(faultsAsErrors(faults)...); err != nil {
		link.Failed(err)
		return err
	}
	err = workWith(link, s, environ, stderr)
	if err != nil {
		link.Failed(err) // for who has asked for a reload
	}
	return err
}

func workWith(link *holder.Link, s settings, environ []string, stderr io.Writer) (err error) {
	w := &worker{link: link, settings: s, environ: environ}
	w.log, w.level = newLogger(s, stderr)
	if w.service, err = newService(s, environ, w.log, link); err != nil {
		return err
	}
	defer w.service.close()
	if err := w.bind(clientDoor, "WSBRIDGE_LISTEN", s.Process.Listen); err != nil {
		return err
	}
	if err := w.bind(pushDoor, "WSBRIDGE_PUSH_LISTEN", s.Process.PushListen); err != nil {
		return err
	}
	for _, address := range link.Unclaimed() {
		w.log.Warn("systemd listens for this program where no setting says so: whoever connects there waits for nothing (WSBRIDGE_LISTEN, WSBRIDGE_PUSH_LISTEN, wsbridge.socket)", "address", address)
	}
	if err := link.Ready(); err != nil {
		return err
	}
	return w.run()
}

// worker is what a worker has.
type worker struct {
	link     *holder.Link
	settings settings
	environ  []string
	log      *slog.Logger
	level    *logLevel
	service  *service
	doors    *doors        // while it serves
	arrived  []holder.Conn // before Go
}

// The names under which the holder keeps listeners.
const (
	clientDoor = "clients"
	pushDoor   = "pushes"
)

// bind sees to it that the holder keeps a listener for the address. This worker has none before it serves: each client and each pusher that comes wakes every process which waits on
// the listener, and a spare waits as long as another worker serves.
func (w *worker) bind(name, variable, address string) error {
	if w.link.Claim(name, address) {
		return nil
	}
	l, err := listen(context.Background(), address, w.settings.Process.SocketMode)
	if err == nil {
		if unix, ok := l.(*net.UnixListener); ok {
			unix.SetUnlinkOnClose(false) // it goes on with the holder
		}
		err = errors.Join(w.link.KeepListener(name, address, l), l.Close())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	return nil
}

// run does what the holder says.
func (w *worker) run() error {
	orders := make(chan holder.Order)
	lost := make(chan error, 1)
	go func() { // as long as the process
		for {
			order, err := w.link.Receive()
			if err != nil {
				lost <- err
				return
			}
			orders <- order
		}
	}()
	var finished <-chan struct{}
	busy := time.NewTicker(100 * time.Millisecond)
	defer busy.Stop()
	told := -1
	for {
		var failed chan error
		if w.doors != nil {
			failed = w.doors.failed
		}
		var ticks <-chan time.Time
		if finished != nil {
			ticks = busy.C
		}
		select {
		case order := <-orders:
			switch order.Kind {
			case holder.Take:
				if w.doors == nil && finished == nil {
					w.arrived = append(w.arrived, order.Conns...)
				} else {
					w.service.bridge.Take(order.Conns)
				}
			case holder.Go:
				if err := w.serve(order.Start); err != nil {
					return err
				}
				finished = nil
			case holder.Suspend:
				finished = w.suspend()
			case holder.GiveBack:
				w.service.bridge.GiveBack()
				if err := w.link.GaveBack(w.doors != nil, w.environ); err != nil {
					w.log.Error("the holder can't be told", "error", err)
				}
			case holder.Verbose:
				w.level.toggle(w.log)
			case holder.Gone:
				w.service.bridge.Gone(order.Lost)
			case holder.Lent:
				w.service.upstream.Lend(order.Posts)
			case holder.Drain:
				w.log.Info("draining", "cause", order.Why, "timeout", w.settings.Process.DrainTimeout.String())
				w.link.CloseListeners()
				drained := make(chan struct{})
				go func() {
					w.drain(false)
					close(drained)
				}()
				for {
					select {
					case <-drained:
						return nil
					case <-lost: // somebody has had enough of waiting
						return errors.New("ended without draining: the holder is gone")
					case order := <-orders:
						w.late(order)
					}
				}
			}
		case <-ticks:
			if posts := w.service.upstream.Busy(); posts != told {
				told = posts
				w.link.Busy(posts)
			}
		case <-finished:
			return nil
		case err := <-failed:
			return fmt.Errorf("a listener failed: %w", err)
		case err := <-lost:
			if w.doors == nil && finished == nil {
				return nil // it was a spare
			}
			w.log.Error("the process that holds the connections is gone: they are closed (1012)", "error", err)
			w.link.CloseListeners()
			w.drain(true)
			return err
		}
	}
}

// late does what the holder says during a drain: others hand over what they still had.
func (w *worker) late(order holder.Order) {
	switch order.Kind {
	case holder.Take:
		w.service.bridge.Take(order.Conns)
	case holder.Gone:
		w.service.bridge.Gone(order.Lost)
	case holder.Lent:
		w.service.upstream.Lend(order.Posts)
	}
}

// serve begins to serve, or does so again where the worker that was to take over has failed.
func (w *worker) serve(start holder.Start) error {
	began := time.Now()
	count := len(w.arrived)
	w.service.bridge.Resume(w.arrived, start)
	w.arrived = nil
	clients, err := w.link.Listener(clientDoor, w.settings.Process.Listen)
	if err != nil {
		return err
	}
	pushes, err := w.link.Listener(pushDoor, w.settings.Process.PushListen)
	if err != nil {
		return err
	}
	if w.doors, err = w.service.open(clients, pushes); err != nil {
		return err
	}
	w.log.Info("serving", "cause", start.Cause, "listen", clients.Addr().String(), "push_listen", pushes.Addr().String(), "backend", w.settings.Backend.URL.String(),
		"version", version(), "resumed", count, "seconds", time.Since(began).Seconds())
	return w.link.Serving(start.Cause)
}

// suspend hands over to the worker that is to serve. The channel it returns is closed when nothing is left to do.
func (w *worker) suspend() <-chan struct{} {
	d := w.doors
	w.doors = nil
	d.clients.Close()
	d.pushes.Close()
	network, place := d.pushes.Addr().Network(), d.pushes.Addr().String()
	next := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, place)
	}}
	posts := w.service.bridge.Suspend(next)
	if err := w.link.Suspended(posts); err != nil {
		w.log.Error("the holder can't be told", "error", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.serving.Wait() // whoever was accepted just now is known behind that
		d.opening.Wait() // handshakes that were under way; the server's own Shutdown drops those whose request it has not read
		<-w.service.bridge.Unfinished()
		// A pusher's next request over a connection that is open is passed on, and the connection closed behind it; one that is idle is kept as long as ever:
		// closed now, it could be in the moment of a request.
		d.pushers.Wait()
		d.close()
		next.CloseIdleConnections()
	}()
	return done
}

// drain ends everything.
func (w *worker) drain(restarting bool) {
	if w.doors == nil { // others serve; or nobody has, yet
		w.service.bridge.Drain(w.settings.Process.DrainTimeout, restarting)
		return
	}
	w.service.drain(w.doors, restarting)
	if restarting {
		return // another program may listen there by now
	}
	for _, address := range []string{w.settings.Process.Listen, w.settings.Process.PushListen} {
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			os.Remove(path)
		}
	}
}
