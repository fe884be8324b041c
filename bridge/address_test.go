package bridge

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func loopback() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
}

func TestWhoTheClientIs(t *testing.T) {
	const nginx = "127.0.0.1:50000"
	rows := []struct {
		name         string
		remote       string
		forwarded    []string
		trusted      string // besides loopback
		address      string // empty: not known
		forwardedFor string
	}{
		{"a client itself", "192.0.2.1:50000", nil, "", "192.0.2.1", "192.0.2.1"},
		{"an IPv6 client itself", "[2001:db8::1]:50000", nil, "", "2001:db8::1", "2001:db8::1"},
		{"an IPv4 client of an IPv6 listener", "[::ffff:192.0.2.1]:50000", nil, "", "192.0.2.1", "192.0.2.1"},
		{"a link-local client", "[fe80::1%eth0]:50000", nil, "", "fe80::1", "fe80::1"},
		{"a client that claims to be another", "192.0.2.1:50000", []string{"198.51.100.1"}, "", "192.0.2.1", "192.0.2.1"},
		{"a client that claims to be loopback", "192.0.2.1:50000", []string{"127.0.0.1"}, "", "192.0.2.1", "192.0.2.1"},

		{"through nginx", nginx, []string{"192.0.2.1"}, "", "192.0.2.1", "192.0.2.1, 127.0.0.1"},
		{"through nginx over IPv6", "[::1]:50000", []string{"2001:db8::1"}, "", "2001:db8::1", "2001:db8::1, ::1"},
		{"through nginx on an IPv6 listener", "[::ffff:127.0.0.1]:50000", []string{"192.0.2.1"}, "", "192.0.2.1", "192.0.2.1, 127.0.0.1"},
		{"a script on this host", nginx, nil, "", "127.0.0.1", "127.0.0.1"},
		{"a lie in front of the truth", nginx, []string{"198.51.100.1, 192.0.2.1"}, "", "192.0.2.1", "198.51.100.1, 192.0.2.1, 127.0.0.1"},
		{"a lie that looks like a proxy", nginx, []string{"127.0.0.1, 192.0.2.1"}, "", "192.0.2.1", "127.0.0.1, 192.0.2.1, 127.0.0.1"},
		{"several lines", nginx, []string{"198.51.100.1", "192.0.2.1"}, "", "192.0.2.1", "198.51.100.1, 192.0.2.1, 127.0.0.1"},
		{"two proxies", nginx, []string{"198.51.100.1, 192.0.2.1, 10.0.0.7"}, "10.0.0.0/8", "192.0.2.1", "198.51.100.1, 192.0.2.1, 10.0.0.7, 127.0.0.1"},
		{"a proxy that isn't trusted", nginx, []string{"192.0.2.1, 10.0.0.7"}, "", "10.0.0.7", "192.0.2.1, 10.0.0.7, 127.0.0.1"},
		{"a proxy by its IPv4-mapped address", nginx, []string{"192.0.2.1, ::ffff:10.0.0.7"}, "10.0.0.0/8", "192.0.2.1", "192.0.2.1, 10.0.0.7, 127.0.0.1"},
		{"proxies only", nginx, []string{"10.0.0.8, 10.0.0.7"}, "10.0.0.0/8", "10.0.0.8", "10.0.0.8, 10.0.0.7, 127.0.0.1"},

		{"a unix socket", "@", []string{"192.0.2.1"}, "", "192.0.2.1", "192.0.2.1"},
		{"a unix socket without a name", "", []string{"192.0.2.1"}, "", "192.0.2.1", "192.0.2.1"},
		{"a unix socket with a path", "/run/nginx.sock", []string{"192.0.2.1"}, "", "192.0.2.1", "192.0.2.1"},
		{"a unix socket and a lie", "@", []string{"198.51.100.1, 192.0.2.1"}, "", "192.0.2.1", "198.51.100.1, 192.0.2.1"},
		{"a unix socket that says nothing", "@", nil, "", "", ""},
		{"a unix socket that says nonsense", "@", []string{"unknown"}, "", "", ""},
		{"something else without an address", "pipe", []string{"192.0.2.1"}, "", "", ""},

		{"a port", nginx, []string{"192.0.2.1:4711"}, "", "192.0.2.1", "192.0.2.1, 127.0.0.1"},
		{"brackets", nginx, []string{"[2001:db8::1]"}, "", "2001:db8::1", "2001:db8::1, 127.0.0.1"},
		{"brackets and a port", nginx, []string{"[2001:db8::1]:80"}, "", "2001:db8::1", "2001:db8::1, 127.0.0.1"},
		{"a zone", nginx, []string{"fe80::1%\x01\"evil"}, "", "fe80::1", "fe80::1, 127.0.0.1"},
		{"a zone in brackets", nginx, []string{"[fe80::1%eth0]:80"}, "", "fe80::1", "fe80::1, 127.0.0.1"},
		{"spaces", nginx, []string{" \t192.0.2.1\t "}, "", "192.0.2.1", "192.0.2.1, 127.0.0.1"},
		{"empty elements", nginx, []string{", 192.0.2.1,,", "", " , "}, "", "192.0.2.1", "192.0.2.1, 127.0.0.1"},
		{"an empty header", nginx, []string{""}, "", "127.0.0.1", "127.0.0.1"},

		{"nonsense", nginx, []string{"unknown"}, "", "127.0.0.1", "127.0.0.1"},
		{"nonsense in front of the client", nginx, []string{"198.51.100.1, evil\r\nX: y, 192.0.2.1"}, "", "192.0.2.1", "192.0.2.1, 127.0.0.1"},
		{"nonsense in front of a proxy", nginx, []string{"192.0.2.1, unknown, 10.0.0.7"}, "10.0.0.0/8", "10.0.0.7", "10.0.0.7, 127.0.0.1"},
		{"IPv4 in brackets", nginx, []string{"[192.0.2.1]"}, "", "127.0.0.1", "127.0.0.1"},
		{"a bracket that isn't closed", nginx, []string{"[::2"}, "", "127.0.0.1", "127.0.0.1"},
		{"a bracket that isn't opened", nginx, []string{"::2]"}, "", "127.0.0.1", "127.0.0.1"},
		{"a port that is none", nginx, []string{"192.0.2.1:http"}, "", "127.0.0.1", "127.0.0.1"},
		{"octal digits", nginx, []string{"192.0.02.1"}, "", "127.0.0.1", "127.0.0.1"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			trusted := loopback()
			if row.trusted != "" {
				trusted = append(trusted, netip.MustParsePrefix(row.trusted))
			}
			r := &http.Request{RemoteAddr: row.remote, Header: http.Header{}}
			if row.forwarded != nil {
				r.Header["X-Forwarded-For"] = row.forwarded
			}
			got := peerOf(r, trusted)
			if got.realIP() != row.address {
				t.Errorf("address = %q, want %q", got.realIP(), row.address)
			}
			if got.Address.IsValid() != (row.address != "") {
				t.Errorf("address = %v, want it to be valid only where it's known", got.Address)
			}
			if got.ForwardedFor != row.forwardedFor {
				t.Errorf("X-Forwarded-For = %q, want %q", got.ForwardedFor, row.forwardedFor)
			}
		})
	}
}

func TestATCPPeerWithoutAnAddressIsNotTrusted(t *testing.T) {
	rows := []struct {
		local net.Addr
		want  string
	}{
		{&net.TCPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 8080}, ""},
		{&net.UnixAddr{Name: "/run/wsbridge.sock", Net: "unix"}, "192.0.2.1"},
	}
	for _, row := range rows {
		ctx := context.WithValue(t.Context(), http.LocalAddrContextKey, row.local)
		r := (&http.Request{Header: http.Header{"X-Forwarded-For": {"192.0.2.1"}}}).WithContext(ctx)
		if got := peerOf(r, loopback()); got.realIP() != row.want || got.ForwardedFor != row.want {
			t.Errorf("on %s: got = %q, %q, want %q", row.local.Network(), got.realIP(), got.ForwardedFor, row.want)
		}
	}
}

func TestALongChainIsCutOnTheLeft(t *testing.T) {
	const longest = "2001:db8:1111:2222:3333:4444:5555:6666"
	r := &http.Request{RemoteAddr: "127.0.0.1:1", Header: http.Header{"X-Forwarded-For": {
		strings.Repeat("192.0.2.1, ", 1000) + strings.Repeat(longest+", ", 23) + "198.51.100.1",
	}}}
	got := peerOf(r, loopback())
	if want := strings.Repeat(longest+", ", 23) + "198.51.100.1, 127.0.0.1"; got.ForwardedFor != want {
		t.Errorf("X-Forwarded-For = %q, want %q", got.ForwardedFor, want)
	}
	if want := netip.MustParseAddr("198.51.100.1"); got.Address != want {
		t.Errorf("address = %v, want %v", got.Address, want)
	}
}

func TestWhatTheClientAskedFor(t *testing.T) {
	const nginx, stranger = "127.0.0.1:50000", "192.0.2.1:50000"
	rows := []struct {
		name        string
		remote      string
		tls         bool
		proto, host string // the headers
		wantProto   string
		wantHost    string
	}{
		{"a client itself", stranger, false, "", "", "http", "bridge.example:8080"},
		{"a client itself over TLS", stranger, true, "", "", "https", "bridge.example:8080"},
		{"a client that lies", stranger, false, "https", "evil.com", "http", "bridge.example:8080"},
		{"through nginx", nginx, false, "https", "example.org", "https", "example.org"},
		{"through nginx without TLS", nginx, true, "http", "example.org:8080", "http", "example.org:8080"},
		{"through nginx that says nothing", nginx, false, "", "", "http", "bridge.example:8080"},
		{"through nginx that says nothing, over TLS", nginx, true, "", "", "https", "bridge.example:8080"},
		{"through a unix socket", "@", false, "https", "example.org", "https", "example.org"},
		{"wss", nginx, false, "wss", "", "https", "bridge.example:8080"},
		{"ws", nginx, true, "WS", "", "http", "bridge.example:8080"},
		{"capital letters", nginx, false, "HTTPS", "Example.org", "https", "Example.org"},
		{"two proxies", nginx, false, "https, http", "example.org , 10.0.0.7:8080", "https", "example.org"},
		{"an IPv6 host", nginx, false, "https", "[2001:db8::1]:8443", "https", "[2001:db8::1]:8443"},
		{"nonsense", nginx, false, "gopher", "not a host", "http", "bridge.example:8080"},
		{"a path", nginx, false, "https", "example.org/x", "https", "bridge.example:8080"},
		{"a user name", nginx, false, "https", "me@example.org", "https", "bridge.example:8080"},
		{"a line break", nginx, false, "https", "example.org\r\nX-Evil: 1", "https", "bridge.example:8080"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := &http.Request{RemoteAddr: row.remote, Host: "bridge.example:8080", Header: http.Header{}}
			if row.tls {
				r.TLS = &tls.ConnectionState{}
			}
			if row.proto != "" {
				r.Header.Set("X-Forwarded-Proto", row.proto)
			}
			if row.host != "" {
				r.Header.Set("X-Forwarded-Host", row.host)
			}
			got := peerOf(r, loopback())
			if got.Proto != row.wantProto || got.Host != row.wantHost {
				t.Errorf("got = %q, %q, want %q, %q", got.Proto, got.Host, row.wantProto, row.wantHost)
			}
		})
	}
}

func TestAHostThatIsNoneIsLeftOut(t *testing.T) {
	for _, host := range []string{"", "me@example.org", "a b", "x/y", "example.org:99999"} {
		r := &http.Request{RemoteAddr: "192.0.2.1:1", Host: host}
		if got := peerOf(r, nil).Host; got != "" {
			t.Errorf("%q: host = %q, want none", host, got)
		}
	}
}

func TestAnAddressIsCountedByWhatAHostIsGiven(t *testing.T) {
	rows := []struct {
		address netip.Addr
		want    string
	}{
		{netip.MustParseAddr("192.0.2.1"), "192.0.2.1/32"},
		{netip.MustParseAddr("::ffff:192.0.2.1"), "192.0.2.1/32"},
		{netip.MustParseAddr("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64"},
		{netip.MustParseAddr("fe80::1%eth0"), "fe80::/64"},
		{netip.Addr{}, "invalid Prefix"},
	}
	for _, row := range rows {
		if got := limitKey(row.address).String(); got != row.want {
			t.Errorf("%v: got = %s, want %s", row.address, got, row.want)
		}
	}
}

// Whatever X-Forwarded-For says, the client is the peer or an address that a trusted proxy has vouched for.
func FuzzAClientCannotChooseItsAddress(f *testing.F) {
	for _, seed := range []string{
		"", "192.0.2.1", "198.51.100.1, 192.0.2.1", "192.0.2.1, 10.0.0.7", "10.0.0.8,10.0.0.7", "unknown, 10.0.0.7", "[::1]:80, [2001:db8::1]:1",
		"1.2.3.4:567", "fe80::1%eth0", "::ffff:10.0.0.7", ",,", "[", "1.1.1.1\r\nX: y", "[::ffff:1.2.3.4%x]:1",
	} {
		f.Add(seed, "127.0.0.1:1")
	}
	f.Add("192.0.2.1", "@")
	f.Add("192.0.2.1", "203.0.113.1:1")
	trusted := append(loopback(), netip.MustParsePrefix("10.0.0.0/8"))
	f.Fuzz(func(t *testing.T, header, remote string) {
		r := &http.Request{RemoteAddr: remote, Header: http.Header{"X-Forwarded-For": strings.Split(header, "\n")}}
		got := peerOf(r, trusted)

		var itself netip.Addr
		if addrPort, err := netip.ParseAddrPort(remote); err == nil {
			itself = plain(addrPort.Addr())
		}
		vouched := []netip.Addr{itself}
		if contains(trusted, itself) || remote == "" || remote[0] == '@' || remote[0] == '/' {
			elements := strings.FieldsFunc(header, func(c rune) bool { return c == ',' || c == '\n' })
			for _, element := range slices.Backward(elements) {
				address, ok := parseForwarded(strings.Trim(element, " \t"))
				if ok {
					vouched = append(vouched, address)
				}
				if ok && !contains(trusted, address) {
					break
				}
			}
		}
		if !slices.Contains(vouched, got.Address) {
			t.Fatalf("%q from %q: address = %v, want one of %v", header, remote, got.Address, vouched)
		}
		if got.Address.Zone() != "" || got.Address.Is4In6() {
			t.Fatalf("%q from %q: address = %v", header, remote, got.Address)
		}
		if len(got.ForwardedFor) > 1024 {
			t.Fatalf("%q from %q: X-Forwarded-For has %d bytes, want 1024 at most", header, remote, len(got.ForwardedFor))
		}
		if got.ForwardedFor == "" {
			if got.Address.IsValid() {
				t.Fatalf("%q from %q: X-Forwarded-For is empty", header, remote)
			}
			return
		}
		chain := strings.Split(got.ForwardedFor, ", ")
		for _, element := range chain {
			if address, err := netip.ParseAddr(element); err != nil || address.String() != element || address.Zone() != "" {
				t.Fatalf("%q from %q: X-Forwarded-For = %q, where %q is no address", header, remote, got.ForwardedFor, element)
			}
		}
		if itself.IsValid() && chain[len(chain)-1] != itself.String() {
			t.Fatalf("%q from %q: X-Forwarded-For = %q, want the peer at its end", header, remote, got.ForwardedFor)
		}
		if !slices.Contains(chain, got.Address.String()) {
			t.Fatalf("%q from %q: X-Forwarded-For = %q, without the client %v", header, remote, got.ForwardedFor, got.Address)
		}
	})
}
