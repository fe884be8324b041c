package e2e

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
)

// The scripts that the README shows are those that are tested here and in php_test.go.
func TestTheREADMEShowsTheScriptsThatAreTested(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shout.php", "welcome.php", "signed.php"} {
		script, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(readme), "```php\n"+string(script)+"```\n") {
			t.Errorf("README.md does not show e2e/testdata/%s as it is: copy it there", name)
		}
	}
}

func TestTheREADMEsScriptKnowsWhoComesAndGoes(t *testing.T) {
	t.Parallel()
	php := startPHP(t)
	s := serve(t, "WSBRIDGE_BACKEND_URL=http://"+php+"/welcome.php")
	_, answer, err := websocket.DefaultDialer.Dial("ws://"+s.clients+"/ws", nil)
	if err == nil || answer == nil || answer.StatusCode != http.StatusUnauthorized {
		t.Fatalf("handshake without a session = %v (%v), want 401", answer, err)
	}
	login, err := http.Get("http://" + php + "/login.php")
	if err != nil {
		t.Fatal(err)
	}
	login.Body.Close()
	ada := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", http.Header{"Cookie": {login.Cookies()[0].String()}})
	ada.hears(t, websocket.TextMessage, "welcome")
	ada.says(t, websocket.TextMessage, "hello")
	ada.hears(t, websocket.TextMessage, "ada said: hello")
}

func TestTheREADMEsScriptBelievesSignedEventsOnly(t *testing.T) {
	t.Parallel()
	const secret, other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	url := "http://" + startPHP(t, "SECRET="+secret) + "/signed.php"
	s := serve(t, "WSBRIDGE_BACKEND_URL="+url, "WSBRIDGE_BACKEND_SECRET="+other+","+secret) // while they are changed
	c := connect(t, websocket.Dialer{}, "ws://"+s.clients+"/ws", nil)
	c.says(t, websocket.TextMessage, "hello")
	c.hears(t, websocket.TextMessage, "HELLO")

	for name, environ := range map[string]string{"another secret": "WSBRIDGE_BACKEND_SECRET=" + other, "no secret": "WSBRIDGE_NODE=unsigned"} {
		s := serve(t, "WSBRIDGE_BACKEND_URL="+url, environ)
		if _, answer, err := websocket.DefaultDialer.Dial("ws://"+s.clients+"/ws", nil); err == nil || answer == nil || answer.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: handshake = %v (%v), want 401", name, answer, err)
		}
	}
	forged, err := http.Post(url, "text/plain", strings.NewReader("forged"))
	if err != nil {
		t.Fatal(err)
	}
	forged.Body.Close()
	if forged.StatusCode != http.StatusUnauthorized {
		t.Errorf("a forged event = %s, want 401", forged.Status)
	}
}
