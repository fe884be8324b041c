package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pairFiles is a certificate and its key in two files.
type pairFiles struct{ cert, key string }

func newPairFiles(t *testing.T) pairFiles {
	t.Helper()
	dir := t.TempDir()
	return pairFiles{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

// newPair returns a certificate and its key in PEM form.
func newPair(t *testing.T, serial int64, from, to time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: from, NotAfter: to, DNSNames: []string{"example.org"}}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// renew puts a file in place of another, as certbot does.
func renew(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

// rewrite changes a file in place. Two changes can fall into one tick of the file system's clock, so the time is set.
func rewrite(t *testing.T, name string, content []byte, at time.Time) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, at, at); err != nil {
		t.Fatal(err)
	}
}

// wantSerial fails unless a handshake shows the certificate with the serial number.
func wantSerial(t *testing.T, c *certificate, want int64) {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	done := make(chan error, 1)
	go func() { done <- tls.Server(server, c.config()).Handshake() }()
	conn := tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	state := conn.ConnectionState()
	if got := state.PeerCertificates[0].SerialNumber.Int64(); got != want {
		t.Errorf("serial number = %d, want %d", got, want)
	}
	if state.NegotiatedProtocol != "http/1.1" {
		t.Errorf("protocol = %q, want http/1.1", state.NegotiatedProtocol)
	}
}

func TestARenewedCertificateIsShownAtTheNextHandshake(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		files := newPairFiles(t)
		cert, key := newPair(t, 1, now, now.Add(time.Hour))
		rewrite(t, files.cert, cert, now)
		rewrite(t, files.key, key, now)
		var log bytes.Buffer
		c, err := newCertificate(files.cert, files.key, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		wantSerial(t, c, 1)

		cert, key = newPair(t, 2, now, now.Add(time.Hour))
		renew(t, files.cert, cert)
		renew(t, files.key, key)
		time.Sleep(time.Second - 1)
		wantSerial(t, c, 1) // looked at less than a second ago
		time.Sleep(1)
		wantSerial(t, c, 2)

		cert, key = newPair(t, 3, now, now.Add(time.Hour))
		rewrite(t, files.cert, cert, now.Add(time.Minute))
		rewrite(t, files.key, key, now.Add(time.Minute))
		wantSerial(t, c, 2) // the last look was just now
		time.Sleep(time.Second)
		wantSerial(t, c, 3)
		if log.Len() > 0 {
			t.Errorf("log = %s, want none", &log)
		}
	})
}

func TestACertificateThatDoesNotLoadLeavesTheOldOneAndOneWarning(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		files := newPairFiles(t)
		cert, key := newPair(t, 1, now, now.Add(time.Hour))
		renew(t, files.cert, cert)
		renew(t, files.key, key)
		var log bytes.Buffer
		c, err := newCertificate(files.cert, files.key, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}

		cert, key = newPair(t, 2, now, now.Add(time.Hour))
		renew(t, files.cert, cert) // its key comes later
		for range 3 {
			time.Sleep(time.Second)
			wantSerial(t, c, 1)
		}
		if got := strings.Count(log.String(), "\n"); got != 1 || !strings.Contains(log.String(), "level=WARN") {
			t.Errorf("log = %q, want one warning", &log)
		}

		renew(t, files.key, key)
		time.Sleep(time.Second)
		wantSerial(t, c, 2)

		if err := os.Remove(files.key); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(time.Second)
			wantSerial(t, c, 2)
		}
		if got := strings.Count(log.String(), "\n"); got != 2 {
			t.Errorf("log = %q, want one more warning", &log)
		}
	})
}

func TestTheFirstCertificateMustLoad(t *testing.T) {
	t.Parallel()
	now := time.Now()
	files := newPairFiles(t)
	cert, _ := newPair(t, 1, now, now.Add(time.Hour))
	_, key := newPair(t, 2, now, now.Add(time.Hour))
	renew(t, files.cert, cert)
	if _, err := newCertificate(files.cert, files.key, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("newCertificate without a key succeeded, want an error")
	}
	renew(t, files.key, key)
	if _, err := newCertificate(files.cert, files.key, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("newCertificate with another certificate's key succeeded, want an error")
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	t.Parallel()
	now := time.Now()
	files := newPairFiles(t)
	cert, key := newPair(t, 1, now, now.Add(time.Hour))
	renew(t, files.cert, cert)
	renew(t, files.key, key)
	c, err := newCertificate(files.cert, files.key, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		client, server := net.Pipe()
		go func() {
			tls.Server(server, c.config()).Handshake()
			server.Close()
		}()
		err := tls.Client(client, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version}).Handshake()
		client.Close()
		if got := err == nil; got != want {
			t.Errorf("handshake with %s: %v, want success: %v", tls.VersionName(version), err, want)
		}
	}
}
