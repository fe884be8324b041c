# A chat backend for Rack. SECRET is what WSBRIDGE_BACKEND_SECRET is there, PUSH_URL where WSBRIDGE_PUSH_LISTEN listens.
require "net/http"
require "openssl"
require "rack"

class Chat
  SECRET = ENV.fetch("SECRET").delete_prefix("whsec_").unpack1("m")
  PUSH_URL = ENV.fetch("PUSH_URL", "http://127.0.0.1:8081")
  TEXT = { "content-type" => "text/plain; charset=utf-8" }.freeze

  def call(env)
    body = env["rack.input"].read
    return [401, {}, []] unless signed?(env, body)

    case env["HTTP_CE_TYPE"]
    when "wsbridge.connect"
      user = Rack::Request.new(env).GET["user"] # yours comes from the session: its cookie is here
      [200, TEXT.merge({ "ws-join" => "lobby", "ws-user" => user }.compact), ["welcome"]]
    when "wsbridge.message"
      if body.start_with?("push ")
        push(env["HTTP_CE_CONNECTIONID"], body.delete_prefix("push "))
        [204, {}, []]
      else
        [200, TEXT, ["#{env.fetch('HTTP_CE_USERID', 'somebody')}: ".b + body]]
      end
    else # disconnect: the body says why, as JSON
      [204, {}, []]
    end
  end

  private

  def signed?(env, body)
    id, timestamp, signatures = env.values_at("HTTP_WEBHOOK_ID", "HTTP_WEBHOOK_TIMESTAMP", "HTTP_WEBHOOK_SIGNATURE")
    mac = OpenSSL::HMAC.digest("SHA256", SECRET, "#{id}.#{timestamp}.".b + body)
    expected = "v1,#{[mac].pack('m0')}"
    signatures.to_s.split.any? { |one| Rack::Utils.secure_compare(expected, one) } && # several while secrets are rotated
      (Time.now.to_i - timestamp.to_i).abs <= 300
  end

  def push(connection, text) # 410: the client has just left
    Net::HTTP.post(URI("#{PUSH_URL}/connections/#{connection}"), text, "Content-Type" => "text/plain")
  end
end

run Chat.new
