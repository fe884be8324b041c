package main

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/caarlos0/env/v10"

	"wsbridge/bridge"
	"wsbridge/ratelimit"
	"wsbridge/upstream"
)

// settings is every setting, declared once. parse reads it; the README's table, the packaged environment file and
// `wsbridge env` are printed from it, in this order.
type settings struct {
	Backend upstream.Config  `envPrefix:"WSBRIDGE_BACKEND_" title:"The backend"`
	Process process          `envPrefix:"WSBRIDGE_" title:"The process"`
	Bridge  bridge.Config    `envPrefix:"WSBRIDGE_" title:"Clients and pushes"`
	Rate    ratelimit.Config `envPrefix:"WSBRIDGE_RATE_" title:"Rates"`
}

// process is what concerns the program as a whole.
type process struct {
	Listen       string        `env:"LISTEN" envDefault:"127.0.0.1:8080" usage:"where clients connect: host:port or unix:/path"`
	PushListen   string        `env:"PUSH_LISTEN" envDefault:"127.0.0.1:8081" usage:"where the backend pushes: host:port or unix:/path"`
	SocketMode   fs.FileMode   `env:"SOCKET_MODE" envDefault:"0660" usage:"file mode of the unix sockets"`
	TLSCert      string        `env:"TLS_CERT" usage:"file with the PEM certificate chain for clients, re-read when it changes; stays empty behind nginx"`
	TLSKey       string        `env:"TLS_KEY" usage:"file with the PEM key of WSBRIDGE_TLS_CERT"`
	DrainTimeout time.Duration `env:"DRAIN_TIMEOUT" envDefault:"30s" min:"1ms" usage:"how long a stop may take; the closes (1001) are spread over it"`
	Holder       string        `env:"HOLDER" envDefault:"on" oneof:"on,off" usage:"whether connections outlive the process that serves them: a second, small process holds their sockets (off outside Linux)"`
	Node         string        `env:"NODE" usage:"name of this program in ce-source: letters, digits, dot, dash and underscore, at most 63 (default: the host name)"`
	LogLevel     slog.Level    `env:"LOG_LEVEL" envDefault:"info" oneof:"debug,info,warn,error" usage:"least level that is logged: debug, info, warn or error"`
	LogFormat    string        `env:"LOG_FORMAT" envDefault:"text" oneof:"text,json" usage:"form of the log: text or json"`
}

// setting is one variable, as the tags of its field declare it.
type setting struct {
	Name     string // WSBRIDGE_BACKEND_TIMEOUT
	Field    string // Timeout, which is what the parser's errors call it
	Default  string
	Usage    string
	Min      string   // holds for values that were set; empty: none
	OneOf    []string // empty: anything
	Required bool
	Secret   bool          // may also come from a file, and is never printed
	Value    reflect.Value // the field
}

// group is the settings of one part of the program.
type group struct {
	Title    string
	Prefix   string
	Config   any // pointer to the part
	Settings []setting
}

// groups walks the declaration. The values are those of s, and can be set.
func groups(s *settings) []group {
	var all []group
	for part, value := range reflect.ValueOf(s).Elem().Fields() {
		g := group{Title: part.Tag.Get("title"), Prefix: part.Tag.Get("envPrefix"), Config: value.Addr().Interface()}
		for field, v := range value.Fields() {
			tag := field.Tag
			one := setting{
				Name: g.Prefix + tag.Get("env"), Field: field.Name, Default: tag.Get("envDefault"), Usage: tag.Get("usage"),
				Min: tag.Get("min"), Required: tag.Get("required") == "true", Secret: tag.Get("secret") == "true", Value: v,
			}
			if words := tag.Get("oneof"); words != "" {
				one.OneOf = strings.Split(words, ",")
			}
			g.Settings = append(g.Settings, one)
		}
		all = append(all, g)
	}
	return all
}

// allowed says what the variable may be set to, or nothing where the errors of its type say it.
func (s setting) allowed() string {
	var text string
	switch s.Value.Interface().(type) {
	case int:
		text = "a whole number"
	case int64:
		text = "a whole number of bytes (65536), or of KiB, MiB or GiB (64KiB)"
	case float64:
		text = "a number such as 10 or 0.5"
	case time.Duration:
		text = "a duration such as 500ms, 30s or 1h30m"
	case fs.FileMode:
		text = "an octal mode such as 0660, at most 0777"
	case []netip.Prefix:
		text = "networks such as 10.0.0.0/8 and fd00::/8, separated by commas (10.0.0.1/32 for one address)"
	}
	if len(s.OneOf) > 0 {
		text = strings.Join(s.OneOf, ", ")
	}
	if s.Min != "" {
		text += ", at least " + s.Min
	}
	return text
}

// parsers are the types that the environment library does not read as the contract wants them: it takes an int for 32 bits, a
// float may be NaN, an int64 of ours is a size, and the error of a network names a function of Go.
func parsers() map[reflect.Type]env.ParserFunc {
	return map[reflect.Type]env.ParserFunc{
		reflect.TypeFor[int](): func(v string) (any, error) {
			n, err := strconv.Atoi(v)
			if err != nil {
				return nil, errors.New("not a whole number, or too large")
			}
			return n, nil
		},
		reflect.TypeFor[int64](): func(v string) (any, error) { return parseSize(v) },
		reflect.TypeFor[float64](): func(v string) (any, error) {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
				return nil, errors.New("not a number, or too large")
			}
			return f, nil
		},
		reflect.TypeFor[time.Duration](): func(v string) (any, error) {
			d, err := time.ParseDuration(v)
			if err != nil {
				return nil, errors.New("not a duration with its unit")
			}
			return d, nil
		},
		reflect.TypeFor[fs.FileMode](): func(v string) (any, error) {
			mode, err := strconv.ParseUint(v, 8, 32)
			if err != nil || mode > 0o777 {
				return nil, errors.New("not a file mode")
			}
			return fs.FileMode(mode), nil
		},
		reflect.TypeFor[[]netip.Prefix](): func(v string) (any, error) {
			var networks []netip.Prefix
			for item := range strings.SplitSeq(v, ",") {
				network, err := netip.ParsePrefix(item)
				if err != nil {
					return nil, fmt.Errorf("%q is not a network", item)
				}
				networks = append(networks, network)
			}
			return networks, nil
		},
	}
}

// parseSize reads a number of bytes: 65536, 64KiB, 1MiB, 2GiB.
func parseSize(s string) (int64, error) {
	digits := s
	if end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		digits = s[:end]
	}
	unit := s[len(digits):]
	if digits == "" || strings.HasPrefix(unit, ".") {
		return 0, errors.New("not a whole number")
	}
	var shift int
	switch unit {
	case "":
	case "KiB":
		shift = 10
	case "MiB":
		shift = 20
	case "GiB":
		shift = 30
	default:
		return 0, fmt.Errorf("%q is not a unit", unit)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, errors.New("too large")
	}
	return n << shift, nil
}

// fault is one thing that is wrong with one variable, for the operator.
type fault struct {
	Variable string
	Value    string // empty where there is none, or none to show
	Problem  string
}

func (f fault) Error() string {
	if f.Value == "" {
		return f.Variable + ": " + f.Problem
	}
	return fmt.Sprintf("%s=%q: %s", f.Variable, f.Value, f.Problem)
}

// parse reads the settings, and returns every fault at once. Settings with faults are not fit to run.
func parse(environ []string) (settings, []fault) {
	var s settings
	p := parsing{values: variables(environ), groups: groups(&s)}
	p.read()
	p.fillDefaults(&s)
	if s.Bridge.StateDir == "" {
		s.Bridge.StateDir = stateDirectory(environ)
	}
	p.checkBackend(&s.Backend)
	p.checkProcess(&s)
	return s, p.inOrder()
}

// parsePush reads what it takes to push: where, and with which token. Its faults are those of that and of unknown variables; the others
// are the service's alone.
func parsePush(environ []string) (address, token string, faults []fault) {
	var s settings
	p := parsing{values: variables(environ), groups: groups(&s)}
	p.read()
	p.checkPush(&s)
	known := p.names()
	faults = slices.DeleteFunc(p.inOrder(), func(f fault) bool {
		return slices.Contains(known, f.Variable) && f.Variable != "WSBRIDGE_PUSH_LISTEN" && !strings.HasPrefix(f.Variable, "WSBRIDGE_PUSH_TOKEN")
	})
	return s.Process.PushListen, s.Bridge.PushToken, faults
}

// parsing is one reading of the environment.
type parsing struct {
	values map[string]string // of the variables that are set; a secret's may have come from a file
	groups []group
	faults []fault
}

// read fills the settings with what the variables say, each for itself.
func (p *parsing) read() {
	p.refuseUnknown()
	for _, g := range p.groups {
		for _, one := range g.Settings {
			p.prepare(one)
		}
		// The library's errors name fields, which are unique only within one part.
		err := env.ParseWithOptions(g.Config, env.Options{Environment: p.values, Prefix: g.Prefix, FuncMap: parsers()})
		all, _ := errors.AsType[env.AggregateError](err)
		for _, err := range all.Errors {
			p.refuseUnparsed(g, err)
		}
		for _, one := range g.Settings {
			p.checkMin(one)
		}
	}
}

// variables returns those of the environment that are ours and set to something. Orchestrators inject WSBRIDGE_SERVICE_* and
// WSBRIDGE_PORT* for a service of this name.
func variables(environ []string) map[string]string {
	values := make(map[string]string)
	for _, line := range environ {
		name, value, _ := strings.Cut(line, "=")
		ours := strings.HasPrefix(name, "WSBRIDGE_") && !strings.HasPrefix(name, "WSBRIDGE_SERVICE_") && !strings.HasPrefix(name, "WSBRIDGE_PORT")
		if ours && value != "" {
			values[name] = value
		} else if ours {
			delete(values, name)
		}
	}
	return values
}

// stateDirectory returns the first of the directories that systemd has made for the unit (systemd.exec(5), StateDirectory=), or nothing.
func stateDirectory(environ []string) string {
	for _, line := range environ {
		if list, ok := strings.CutPrefix(line, "STATE_DIRECTORY="); ok {
			first, _, _ := strings.Cut(list, ":")
			return first
		}
	}
	return ""
}

// refuse notes a fault. The first of a variable is enough: later ones would follow from it.
func (p *parsing) refuse(name, format string, args ...any) {
	if p.refused(name) {
		return
	}
	f := fault{Variable: name, Problem: fmt.Sprintf(format, args...)}
	for _, g := range p.groups {
		if slices.ContainsFunc(g.Settings, func(one setting) bool { return one.shows(name) }) {
			f.Value = withoutPassword(p.values[name])
		}
	}
	p.faults = append(p.faults, f)
}

// shows reports whether name is this setting's variable and its value may be printed: a secret's only as the name of its file.
func (s setting) shows(name string) bool {
	if s.Secret {
		return name == s.Name+"_FILE"
	}
	return name == s.Name
}

// withoutPassword hides the user part of a URL: http://user:password@host.
func withoutPassword(value string) string {
	scheme, rest, isURL := strings.Cut(value, "://")
	if at := strings.LastIndexByte(rest, '@'); isURL && at >= 0 {
		return scheme + "://(hidden)" + rest[at:]
	}
	return value
}

func (p *parsing) refused(name string) bool {
	return slices.ContainsFunc(p.faults, func(f fault) bool { return f.Variable == name })
}

// inOrder returns the faults in the order of the documents, then those of unknown variables by name.
func (p *parsing) inOrder() []fault {
	names := p.names()
	place := func(f fault) int {
		if i := slices.Index(names, f.Variable); i >= 0 {
			return i
		}
		return len(names)
	}
	slices.SortFunc(p.faults, func(a, b fault) int {
		return cmp.Or(cmp.Compare(place(a), place(b)), strings.Compare(a.Variable, b.Variable))
	})
	return p.faults
}

// names returns every variable there is.
func (p *parsing) names() []string {
	var names []string
	for _, g := range p.groups {
		for _, one := range g.Settings {
			names = append(names, one.Name)
			if one.Secret {
				names = append(names, one.Name+"_FILE")
			}
		}
	}
	return names
}

// refuseUnknown finds the misspelt, which would otherwise go unnoticed. Their values are not shown: one may be a secret.
func (p *parsing) refuseUnknown() {
	names := p.names()
	for name := range p.values {
		if slices.Contains(names, name) {
			continue
		}
		nearest := slices.MinFunc(names, func(a, b string) int { return cmp.Compare(distance(name, a), distance(name, b)) })
		if near(name, nearest) {
			p.refuse(name, "no such setting; the nearest name is %s", nearest)
		} else {
			p.refuse(name, "no such setting; wsbridge env prints all there are")
		}
	}
}

// near reports whether one name may be a slip for the other: at most a third of it is different, not counting the prefix of all.
func near(a, b string) bool {
	return 3*distance(a, b) <= max(len(a), len(b))-len("WSBRIDGE_")
}

// distance is the number of bytes to insert, remove or replace to get from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// prepare makes of a variable's value what the library is to read, and checks what the library would not: a secret is fetched from
// its file, and the items of a list lose the space around them.
func (p *parsing) prepare(one setting) {
	if one.Secret {
		p.readSecret(one)
	}
	value, set := p.values[one.Name]
	switch {
	case !set && one.Required:
		p.refuse(one.Name, "must be set: %s", one.Usage)
	case set && len(one.OneOf) > 0 && !slices.Contains(one.OneOf, value):
		p.refuse(one.Name, "not one of the words allowed: %s", one.allowed())
	case set && one.Value.Kind() == reflect.Slice:
		items := strings.Split(value, ",")
		for i := range items {
			items[i] = strings.TrimSpace(items[i])
		}
		if slices.Contains(items, "") {
			p.refuse(one.Name, "the list has an empty item; remove the comma beside it")
		}
		p.values[one.Name] = strings.Join(items, ",")
	}
}

func (p *parsing) readSecret(one setting) {
	variable := one.Name + "_FILE"
	file := p.values[variable]
	if file == "" {
		return
	}
	if p.values[one.Name] != "" {
		p.refuse(variable, "%s is set as well; keep one of the two", one.Name)
		return
	}
	content, err := os.ReadFile(file)
	if err != nil {
		// The path is in the fault already.
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err
		}
		p.refuse(variable, "cannot be read: %v", err)
		return
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	if secret == "" {
		p.refuse(variable, "the file is empty; it must hold the secret")
		return
	}
	p.values[one.Name] = secret
}

// refuseUnparsed turns an error of the library, which names the field, into a fault of the variable.
func (p *parsing) refuseUnparsed(g group, err error) {
	parse, ok := errors.AsType[env.ParseError](err)
	i := slices.IndexFunc(g.Settings, func(one setting) bool { return one.Field == parse.Name })
	if !ok || i < 0 {
		panic(fmt.Sprintf("a setting of a type that cannot be read: %v", err)) // in the declaration, whatever the environment
	}
	one := g.Settings[i]
	problem := parse.Err.Error()
	switch value := p.values[one.Name]; { // the error may quote the value
	case one.Secret:
		problem = "does not parse"
	case withoutPassword(value) != value:
		problem = "must be a URL without a user name or password"
	}
	if allowed := one.allowed(); allowed != "" {
		problem += "; allowed: " + allowed
	}
	p.refuse(one.Name, "%s", problem)
}

func (p *parsing) checkMin(one setting) {
	if one.Min == "" || p.values[one.Name] == "" || p.refused(one.Name) {
		return
	}
	least, err := parsers()[one.Value.Type()](one.Min)
	if err != nil {
		panic(fmt.Sprintf("the least value of %s: %v", one.Name, err)) // in the declaration, whatever the environment
	}
	small := false
	if one.Value.CanFloat() {
		small = one.Value.Float() < reflect.ValueOf(least).Float()
	} else {
		small = one.Value.Int() < reflect.ValueOf(least).Int()
	}
	if small {
		p.refuse(one.Name, "too small; allowed: %s", one.allowed())
	}
}

// fillDefaults sets what was left open and depends on other settings or on the machine.
func (p *parsing) fillDefaults(s *settings) {
	if s.Process.Node == "" {
		name, err := os.Hostname()
		if err != nil || !validNode(name) {
			p.refuse("WSBRIDGE_NODE", "must be set, since the host name (%q) does not fit: letters, digits, dot, dash and underscore, at most 63", name)
		}
		s.Process.Node = name
	}
	if len(s.Bridge.Paths) == 0 {
		s.Bridge.Paths = []bridge.Path{"/ws", "/ws/*"}
		if s.Backend.URL.HasPath() {
			s.Bridge.Paths = []bridge.Path{"/*"}
		}
	}
	if s.Bridge.MaxConnections == 0 {
		s.Bridge.MaxConnections = connectionsFor(descriptors(), s.Backend.MaxConcurrent)
	}
	if s.Rate.MessagesBurst == 0 {
		s.Rate.MessagesBurst = twice(s.Rate.Messages)
	}
	if s.Rate.BytesBurst == 0 {
		s.Rate.BytesBurst = 2 * min(s.Rate.Bytes, math.MaxInt64/2)
	}
	if s.Rate.HandshakesBurst == 0 {
		s.Rate.HandshakesBurst = twice(s.Rate.Handshakes)
	}
}

// twice is the burst of a rate: at least one, or nothing would ever pass, and none of a rate that is off.
func twice(rate float64) int {
	return int(min(math.Ceil(2*rate), math.MaxInt32))
}

// descriptors returns how many files this process may have open, or 0 where the system doesn't say. The Go runtime has raised the
// soft limit to the hard one by now.
func descriptors() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return uint64(limit.Cur)
}

// connectionsFor returns how many clients fit a limit of descriptors. Each takes one, each POST under way another; a tenth stays free
// for those being accepted or refused and for pushes, and 64 for listeners, logs and files.
//
// A limit of more than a million (containers are often given 2^30) tells nothing about the machine. Then 65536 it is: half a gigabyte
// when they are idle. Who wants more says so.
func connectionsFor(descriptors uint64, posts int) int {
	if descriptors == 0 || descriptors > 1<<20 {
		return 65536
	}
	return max(int(descriptors-descriptors/10)-posts-64, 1)
}

func (p *parsing) checkBackend(c *upstream.Config) {
	if c.Host != "" && !validAuthority(c.Host) {
		p.refuse("WSBRIDGE_BACKEND_HOST", "not a host; allowed: a name or an address, with or without a port (app.example.org, [::1]:9000)")
	}
	if media, _, err := mime.ParseMediaType(c.TextType); err != nil || !strings.Contains(media, "/") || !printable(c.TextType) {
		p.refuse("WSBRIDGE_BACKEND_TEXT_TYPE", "not a media type; allowed: one such as application/json or text/plain; charset=utf-8")
	}
	for i, name := range c.ForwardHeaders {
		if reason := notForwarded(name); reason != "" {
			p.refuse("WSBRIDGE_BACKEND_FORWARD_HEADERS", "%q %s; remove it from the list", name, reason)
		}
		c.ForwardHeaders[i] = http.CanonicalHeaderKey(name)
	}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			p.refuse("WSBRIDGE_BACKEND_CA", "cannot be read: %v", e.Err)
		} else if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			p.refuse("WSBRIDGE_BACKEND_CA", "the file holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
		}
	}
}

// notForwarded says why a header of the handshake may not go with the events, or nothing when it may.
func notForwarded(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool {
		letter := 'a' <= r|0x20 && r|0x20 <= 'z' && r < 0x80
		return !letter && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	}) {
		return "is not the name of a header"
	}
	lower := strings.ToLower(name)
	switch lower {
	case "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
		"upgrade", "expect":
		return "belongs to one hop, not to the event"
	case "host", "accept-encoding", "traceparent", "x-real-ip":
		return "is one that wsbridge sets itself"
	}
	for _, prefix := range []string{"content-", "ce-", "webhook-", "x-forwarded-"} {
		if strings.HasPrefix(lower, prefix) {
			return "is one that wsbridge sets itself"
		}
	}
	if strings.HasPrefix(lower, "sec-websocket-") {
		return "belongs to the handshake, not to the event"
	}
	return ""
}

func (p *parsing) checkProcess(s *settings) {
	c := &s.Process
	if _, _, err := splitAddress(c.Listen); err != nil {
		p.refuse("WSBRIDGE_LISTEN", "%v", err)
	}
	p.checkPush(s)
	listeners := !p.refused("WSBRIDGE_LISTEN") && !p.refused("WSBRIDGE_PUSH_LISTEN")
	if listeners && overlap(c.Listen, c.PushListen) {
		p.refuse("WSBRIDGE_PUSH_LISTEN", "the same as WSBRIDGE_LISTEN (%s); clients and pushes need an address each", c.Listen)
	}
	if c.TLSCert == "" && c.TLSKey != "" {
		p.refuse("WSBRIDGE_TLS_CERT", "must be set, since WSBRIDGE_TLS_KEY is")
	}
	if c.TLSCert != "" && c.TLSKey == "" {
		p.refuse("WSBRIDGE_TLS_KEY", "must be set, since WSBRIDGE_TLS_CERT is")
	}
	if !validNode(c.Node) {
		p.refuse("WSBRIDGE_NODE", "not a node's name; allowed: letters, digits, dot, dash and underscore, at most 63")
	}
}

func (p *parsing) checkPush(s *settings) {
	if _, _, err := splitAddress(s.Process.PushListen); err != nil {
		p.refuse("WSBRIDGE_PUSH_LISTEN", "%v", err)
	}
	token := s.Bridge.PushToken
	if token == "" && !p.refused("WSBRIDGE_PUSH_TOKEN_FILE") && !p.refused("WSBRIDGE_PUSH_LISTEN") && !loopback(s.Process.PushListen) {
		p.refuse("WSBRIDGE_PUSH_TOKEN", "must be set (or WSBRIDGE_PUSH_TOKEN_FILE), since other hosts may reach WSBRIDGE_PUSH_LISTEN=%s", s.Process.PushListen)
	}
	if strings.TrimSpace(token) != token || !printable(token) {
		p.refuse("WSBRIDGE_PUSH_TOKEN", "must be printable ASCII without space around it, or no request could carry it")
	}
}

func validNode(name string) bool {
	return len(name) > 0 && len(name) <= 63 && !strings.ContainsFunc(name, func(r rune) bool {
		letter := 'a' <= r|0x20 && r|0x20 <= 'z' && r < 0x80
		return !letter && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	})
}

// validAuthority reports whether s is a host with or without a port, as a Host header has it.
func validAuthority(s string) bool {
	u, err := url.Parse("http://" + s)
	return err == nil && u.Host == s && validHost(u.Hostname())
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
