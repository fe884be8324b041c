# The Rack application APP: each event is a line of the file RECORD before the application sees it.
record = File.open(ENV.fetch("RECORD"), "a").tap { |file| file.sync = true }
use(Class.new do
  define_method(:initialize) { |app| @app = app }
  define_method(:call) do |env|
    record.write("#{env.values_at('HTTP_CE_TYPE', 'HTTP_CE_ID', 'HTTP_CE_ATTEMPT').join(' ')}\n")
    @app.call(env)
  end
end)
run [*Rack::Builder.parse_file(ENV.fetch("APP"))].first
