package upstream

import (
	"io"
	"log"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// The tests leave nothing behind: no connection to a backend, and nobody who reads or writes one.
func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // net/http's transport writes there what a backend sends unasked
	code := m.Run()
	if left := leftBehind(); code == 0 && left != "" {
		os.Stderr.WriteString("goroutines left behind:\n\n" + left + "\n")
		code = 1
	}
	os.Exit(code)
}

// leftBehind returns the stacks of the goroutines that speak with a backend, once those that are about to end have had their time.
func leftBehind() string {
	var left []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		stacks := make([]byte, 4<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		left = nil
		for stack := range strings.SplitSeq(string(stacks), "\n\n") {
			if strings.Contains(stack, "net/http.(*") || strings.Contains(stack, "wsbridge/upstream.(*Client)") || strings.Contains(stack, "wsbridge/upstream.(*link)") {
				left = append(left, stack)
			}
		}
		if left == nil {
			return ""
		}
	}
	return strings.Join(left, "\n\n")
}
