package bridge

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"mime"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// apiDocument is openapi.json, as far as it must be understood to be held against the handlers.
type apiDocument struct {
	t    *testing.T
	root any
	seen map[string]bool // properties of the components' schemas that have been in an answer
}

// apiOperation is one method of one path.
type apiOperation struct {
	query     map[string]bool // its query parameters
	responses map[int]any
}

func readDocument(t *testing.T) *apiDocument {
	t.Helper()
	d := &apiDocument{t: t, seen: map[string]bool{}}
	if err := json.Unmarshal(openAPI, &d.root); err != nil {
		t.Fatal(err)
	}
	return d
}

// at returns what is below a node, across references.
func (d *apiDocument) at(node any, keys ...string) any {
	d.t.Helper()
	for _, key := range append([]string{""}, keys...) {
		object, _ := node.(map[string]any)
		if key != "" {
			node = object[key]
			object, _ = node.(map[string]any)
		}
		if reference, ok := object["$ref"].(string); ok {
			node = d.pointed(reference)
		}
	}
	return node
}

func (d *apiDocument) pointed(reference string) any {
	d.t.Helper()
	node := d.root
	path, ok := strings.CutPrefix(reference, "#/")
	for key := range strings.SplitSeq(path, "/") {
		object, _ := node.(map[string]any)
		node = object[key]
	}
	if !ok || node == nil {
		d.t.Fatalf("%s leads nowhere", reference)
	}
	return node
}

// operations returns the document's operations by their patterns as the mux has them.
func (d *apiDocument) operations() map[string]apiOperation {
	d.t.Helper()
	found := map[string]apiOperation{}
	for path, item := range d.at(d.root, "paths").(map[string]any) {
		shared, _ := d.at(item, "parameters").([]any)
		for method, node := range item.(map[string]any) {
			if method == "parameters" {
				continue
			}
			pattern := strings.ToUpper(method) + " " + path
			o := apiOperation{query: map[string]bool{}, responses: map[int]any{}}
			own, _ := d.at(node, "parameters").([]any)
			inPath := map[string]bool{}
			for _, parameter := range append(slices.Clone(shared), own...) {
				name, in := d.at(parameter, "name").(string), d.at(parameter, "in").(string)
				switch in {
				case "query":
					o.query[name] = true
				case "path":
					inPath[name] = true
				}
			}
			for _, match := range regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1) {
				if !inPath[match[1]] {
					d.t.Errorf("%s: %s is not described", pattern, match[0])
				}
				delete(inPath, match[1])
			}
			if len(inPath) > 0 {
				d.t.Errorf("%s: %v are not in the path", pattern, inPath)
			}
			for status, response := range d.at(node, "responses").(map[string]any) {
				code, err := strconv.Atoi(status)
				if err != nil {
					d.t.Fatal(err)
				}
				o.responses[code] = d.at(response)
			}
			found[pattern] = o
		}
	}
	return found
}

func TestTheOpenAPIDocumentsReferencesResolveAndEachComponentIsUsed(t *testing.T) {
	d := readDocument(t)
	used := map[string]bool{}
	var walk func(node any)
	walk = func(node any) {
		switch node := node.(type) {
		case []any:
			for _, item := range node {
				walk(item)
			}
		case map[string]any:
			if reference, ok := node["$ref"].(string); ok {
				d.pointed(reference)
				used[reference] = true
			}
			for _, item := range node {
				walk(item)
			}
		}
	}
	walk(d.root)
	for kind, components := range d.at(d.root, "components").(map[string]any) {
		if kind == "securitySchemes" {
			continue // named without references
		}
		for name := range components.(map[string]any) {
			if reference := "#/components/" + kind + "/" + name; !used[reference] {
				t.Errorf("nothing refers to %s", reference)
			}
		}
	}
	if version := d.at(d.root, "openapi"); version != "3.1.0" {
		t.Errorf("openapi = %v, want 3.1.0", version)
	}
}

func TestTheOpenAPIDocumentDescribesEachRouteAndNoOther(t *testing.T) {
	inBubble(t, nil, func(b *bubble) {
		served := append(slices.Collect(maps.Keys(b.routes())), "GET /healthz", "GET /readyz", "GET /metrics")
		described := readDocument(t).operations()
		for _, pattern := range served {
			if _, ok := described[pattern]; !ok {
				t.Errorf("%s is served and not described", pattern)
			}
			delete(described, pattern)
		}
		for pattern := range described {
			t.Errorf("%s is described and not served", pattern)
		}
		if got := b.call("GET", "/openapi.json", ""); got.Code != 200 || !bytes.Equal(got.Body.Bytes(), openAPI) {
			t.Errorf("/openapi.json = %d and %d bytes, want the document", got.Code, got.Body.Len())
		}
	})
}

// provoker calls the push side of a bubble with a connection that lives, one that is opening and one that answers nothing.
type provoker struct {
	*bubble
	push    http.Handler
	clients sync.WaitGroup
	ids     map[string]string // by role
}

// inProvocation runs a test among such connections. The live one has a user, a group and a subprotocol, and reads.
func inProvocation(t *testing.T, token string, test func(p *provoker)) {
	t.Helper()
	var held chan struct{}
	inBubble(t, func(w *world) {
		held = make(chan struct{})
		w.config.PushToken, w.config.PushMaxBody, w.config.HandshakeTimeout, w.config.PingInterval = token, 1000, time.Hour, time.Hour
		w.backend.Timeout, w.backend.MaxConcurrent = time.Hour, 1000
		w.answer = func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Header.Get("ce-type") != "wsbridge.connect":
			case r.Header.Get("Cookie") == "opening":
				<-held
			case r.Header.Get("Cookie") == "live":
				w.Header().Set("Ws-User", "u")
				w.Header().Set("Ws-Join", "g")
				w.Header().Set("Sec-WebSocket-Protocol", "chat")
			}
		}
	}, func(b *bubble) {
		p := &provoker{bubble: b, ids: map[string]string{}}
		p.push = b.Bridge.Push(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "up 1\n") }), http.NotFoundHandler())
		test(p)
		close(held)
		b.Drain(time.Minute, false)
		p.clients.Wait()
	})
}

// id returns the id of the connection in a role. What was called before may have closed it: then there is another.
func (p *provoker) id(role string) string {
	p.t.Helper()
	if p.registry.find(p.ids[role]) != nil {
		return p.ids[role]
	}
	p.clients.Go(func() {
		c, _, err := p.tryDial(func(d *websocket.Dialer, h http.Header) {
			d.Subprotocols = []string{"chat"}
			h.Set("Cookie", role)
		})
		if err != nil {
			p.t.Errorf("dial: %v", err)
		} else if role != "deaf" {
			closing(c)
		}
	})
	p.ids[role] = p.bubble.id()
	return p.ids[role]
}

// call sends a request to a route, with the connection of a role. A batch without a body gets one.
func (p *provoker) call(pattern, query string, header http.Header, body, role string) *httptest.ResponseRecorder {
	p.t.Helper()
	id := "nobody"
	for _, needed := range []string{"live", "opening", "deaf"} { // all of them: they are in the lists
		if there := p.id(needed); needed == role {
			id = there
		}
	}
	method, path, _ := strings.Cut(pattern, " ")
	path = strings.NewReplacer("{id}", id, "{user}", "u", "{group}", "g").Replace(path)
	if body == "" && path == "/batch" {
		body = p.lines()
	}
	r := httptest.NewRequest(method, path+query, strings.NewReader(body))
	r.Host = "localhost"
	maps.Copy(r.Header, header)
	w := httptest.NewRecorder()
	p.push.ServeHTTP(w, r)
	return w
}

// lines are those of a batch that has all the verdicts there are.
func (p *provoker) lines() string {
	return strings.Join([]string{
		`{"to":"/connections/` + p.id("live") + `","body":"text"}`,
		`{"to":"/connections/` + p.id("live") + `","base64":"AP8=","ttl":"1s","collapse":"key"}`,
		`{"to":"/connections/` + p.id("live") + `","body":"text","confirm":"1s"}`,
		`{"to":"/groups/g","body":"text","confirm":"1s","except":["nobody"]}`,
		`{"to":"/users/u","body":"text","except":"nobody,no one"}`,
		`{"to":"/connections/nobody","body":"text"}`,
		`{"to":"/connections/` + p.id("opening") + `","body":"text","confirm":"1s"}`,
		`{"to":"/connections/` + p.id("deaf") + `","body":"text","confirm":"1s"}`,
		`{"to":"/groups/g","body":"` + strings.Repeat("x", 1001) + `"}`,
		`{"to":"nowhere","body":"text"}`,
		`no line`,
	}, "\n")
}

func TestEachParameterInTheOpenAPIDocumentIsTakenAndAnyOtherIsNamedInA400(t *testing.T) {
	samples := map[string]string{
		"limit": "1", "after": "x", "user": "u", "group": "g", "code": "4000", "reason": "bye", "confirm": "1s", "ttl": "1s", "collapse": "key",
		"except": "x,y", "nonsense": "1",
	}
	operations := readDocument(t).operations()
	for _, o := range operations {
		for name := range o.query {
			if samples[name] == "" {
				t.Fatalf("this test has no sample of %s", name)
			}
		}
	}
	inProvocation(t, "", func(p *provoker) {
		for pattern, o := range operations {
			if o.responses[400] == nil {
				continue // what is asked by machines takes what they add
			}
			for name, value := range samples {
				w := p.call(pattern, "?"+name+"="+value, nil, "", "live")
				var refused problemDetails
				json.Unmarshal(w.Body.Bytes(), &refused)
				switch {
				case o.query[name] && w.Code >= 300:
					t.Errorf("%s?%s=%s: %d %s, want it taken", pattern, name, value, w.Code, w.Body)
				case !o.query[name] && (w.Code != 400 || refused.Field != name):
					t.Errorf("%s?%s=%s: %d %s, want 400 that names it", pattern, name, value, w.Code, w.Body)
				}
			}
		}
	})
}

func TestEachStatusIsInTheOpenAPIDocumentAndEachOneThereComes(t *testing.T) {
	d := readDocument(t)
	operations := d.operations()
	come := map[string]map[int]bool{}
	for pattern := range operations {
		come[pattern] = map[int]bool{}
	}
	check := func(pattern, how string, w *httptest.ResponseRecorder) {
		t.Helper()
		come[pattern][w.Code] = true
		response, ok := operations[pattern].responses[w.Code]
		if !ok {
			t.Errorf("%s, %s: %d, which is not documented: %s", pattern, how, w.Code, w.Body)
			return
		}
		if err := d.matches(response, w); err != nil {
			t.Errorf("%s, %s: %d: %v\n%s", pattern, how, w.Code, err, w.Body)
		}
	}
	inProvocation(t, "", func(p *provoker) {
		type provocation struct {
			how, query, body string
			header           http.Header
			role             string
		}
		for pattern := range operations {
			clear(p.ids) // what other routes did to connections is not seen here
			for _, c := range []provocation{
				{how: "as it is"},
				{how: "an option that there is not", query: "?nonsense=1"},
				{how: "called by a page of another site", header: http.Header{"Sec-Fetch-Site": {"cross-site"}}},
				{how: "of a form", header: http.Header{"Content-Type": {"multipart/form-data; boundary=x"}}},
				{how: "too large", body: strings.Repeat("x", 1001)},
				{how: "to be confirmed", query: "?confirm=1s"},
				{how: "to be confirmed by a client that doesn't", query: "?confirm=1s", role: "deaf"},
				{how: "to be confirmed while the connection is opening", query: "?confirm=1s", role: "opening"},
				{how: "of a connection that is opening", role: "opening"},
				{how: "of no connection", role: "nobody"},
				{how: "under a key", header: http.Header{"Idempotency-Key": {"key"}}},
				{how: "under a key that is used", header: http.Header{"Idempotency-Key": {"key"}}, body: "another"},
				{how: "in pages", query: "?limit=1"},
			} {
				check(pattern, c.how, p.call(pattern, c.query, c.header, c.body, cmp.Or(c.role, "live")))
			}
			p.serving.Store(false)
			check(pattern, "before the start", p.call(pattern, "", nil, "", "live"))
			p.serving.Store(true)
		}
	})
	inProvocation(t, "token", func(p *provoker) {
		for pattern := range operations {
			check(pattern, "without the token", p.call(pattern, "", nil, "", "live"))
			for _, token := range []string{"Bearer token", "Basic bmFtZTp0b2tlbg=="} {
				w := p.call(pattern, "", http.Header{"Authorization": {token}}, "", "live")
				check(pattern, "with "+token, w)
				if w.Code >= 300 {
					t.Errorf("%s with %s: %d %s", pattern, token, w.Code, w.Body)
				}
			}
		}
	})
	for pattern, o := range operations {
		for status := range o.responses {
			if !come[pattern][status] {
				t.Errorf("%s: %d is documented and was not provoked", pattern, status)
			}
		}
	}
	for name, schema := range d.at(d.root, "components", "schemas").(map[string]any) {
		properties, _ := d.at(schema, "properties").(map[string]any)
		for property := range properties {
			if name != "BatchLine" && !d.seen[name+"."+property] {
				t.Errorf("no answer had the %s of a %s", property, name)
			}
		}
	}
	for _, status := range d.at(d.root, "components", "schemas", "Verdict", "properties", "status", "enum").([]any) {
		if !d.seen[fmt.Sprintf("Verdict.status %v", status)] {
			t.Errorf("no line of a batch was answered with %v", status)
		}
	}
}

func TestTheOpenAPIDocumentKnowsTheFieldsOfABatchLine(t *testing.T) {
	d := readDocument(t)
	inProvocation(t, "", func(p *provoker) {
		for line := range strings.Lines(p.lines()) {
			var value any
			if json.Unmarshal([]byte(line), &value) != nil {
				continue // one that is meant to be bad
			}
			if err := d.check(map[string]any{"$ref": "#/components/schemas/BatchLine"}, value, "line"); err != nil {
				t.Errorf("%v: %s", err, line)
			}
		}
	})
	properties := d.at(d.root, "components", "schemas", "BatchLine", "properties").(map[string]any)
	for field := range reflect.TypeFor[batchLine]().Fields() {
		name := field.Tag.Get("json")
		if properties[name] == nil {
			t.Errorf("%s is not documented", name)
		}
		delete(properties, name)
	}
	for name := range properties {
		t.Errorf("%s is documented, and is no field", name)
	}
}

// matches holds an answer against the response that the document has for it.
func (d *apiDocument) matches(response any, w *httptest.ResponseRecorder) error {
	for name := range asObject(d.at(response, "headers")) {
		if w.Header().Get(name) == "" {
			return fmt.Errorf("without %s", name)
		}
	}
	content := asObject(d.at(response, "content"))
	if len(content) == 0 {
		if w.Body.Len() > 0 {
			return fmt.Errorf("has a body, and none is documented")
		}
		return nil
	}
	kind := w.Header().Get("Content-Type")
	if kind == "" {
		kind = http.DetectContentType(w.Body.Bytes()) // as a server does
	}
	kind, _, _ = mime.ParseMediaType(kind)
	media, ok := content[kind]
	if !ok {
		return fmt.Errorf("is %s, which is not documented", kind)
	}
	if strings.HasPrefix(kind, "text/") {
		return nil
	}
	bodies := [][]byte{w.Body.Bytes()}
	if kind == "application/x-ndjson" {
		bodies = bytes.Split(bytes.TrimSpace(w.Body.Bytes()), []byte("\n"))
	}
	for _, body := range bodies {
		var value any
		if err := json.Unmarshal(body, &value); err != nil {
			return err
		}
		if err := d.check(asObject(media)["schema"], value, "answer"); err != nil {
			return err
		}
	}
	return nil
}

func asObject(node any) map[string]any {
	object, _ := node.(map[string]any)
	return object
}

// check holds a value against a schema: its type, the values it may have and, where the schema names properties, that there are those and no others.
func (d *apiDocument) check(schema, value any, where string) error {
	s := asObject(schema)
	name := ""
	if reference, ok := s["$ref"].(string); ok {
		name = reference[strings.LastIndex(reference, "/")+1:]
		s = asObject(d.pointed(reference))
	}
	if kind, ok := s["type"].(string); ok && kind != kindOf(value) {
		return fmt.Errorf("%s is of type %s, want %s", where, kindOf(value), kind)
	}
	if allowed, ok := s["enum"].([]any); ok && !slices.Contains(allowed, value) {
		return fmt.Errorf("%s is %v, want one of %v", where, value, allowed)
	}
	if pattern, ok := s["pattern"].(string); ok && !regexp.MustCompile(pattern).MatchString(value.(string)) {
		return fmt.Errorf("%s is %q, which does not match %s", where, value, pattern)
	}
	if some, ok := s["anyOf"].([]any); ok && !slices.ContainsFunc(some, func(schema any) bool { return d.check(schema, value, where) == nil }) {
		return fmt.Errorf("%s matches none of %v", where, some)
	}
	items, _ := value.([]any)
	for i, item := range items {
		if err := d.check(s["items"], item, fmt.Sprintf("%s[%d]", where, i)); err != nil {
			return err
		}
	}
	required, _ := s["required"].([]any)
	for _, property := range required {
		if _, ok := asObject(value)[property.(string)]; !ok {
			return fmt.Errorf("%s lacks %s", where, property)
		}
	}
	properties := asObject(s["properties"])
	if properties == nil {
		return nil
	}
	for property, item := range asObject(value) {
		if properties[property] == nil {
			return fmt.Errorf("%s has %s, which is not documented", where, property)
		}
		if err := d.check(properties[property], item, where+"."+property); err != nil {
			return err
		}
		d.seen[name+"."+property] = true
		if property == "status" {
			d.seen[fmt.Sprintf("%s.status %v", name, item)] = true
		}
	}
	return nil
}

func kindOf(value any) string {
	switch value := value.(type) {
	case map[string]any:
		return "object"
	case []any:
		return "array"
	case string:
		return "string"
	case bool:
		return "boolean"
	case float64:
		if value == math.Trunc(value) {
			return "integer"
		}
		return "number"
	}
	return "null"
}
