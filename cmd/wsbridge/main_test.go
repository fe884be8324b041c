package main

import (
	"context"
	"os"
	"testing"
)

// TestMain lets the test binary be the program of a worker: what runs in a test as a holder runs itself once more.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == workerCommand {
		os.Exit(run(context.Background(), os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}
