//! The gateway as users run it: a process with a data directory and a configuration.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Child, Namespace, Testnet, eventually, http};

/// How long a start may take, migrations and Cranelift included, on a busy machine.
const START: Duration = Duration::from_secs(60);

/// How long a command may take; `doctor` waits for what does not answer.
const COMMAND: Duration = Duration::from_secs(60);

/// How long a drain may take.
const STOP: Duration = Duration::from_secs(20);

/// What a gateway is started with. Everything that could leave the machine is off unless asked for.
#[derive(Clone)]
pub struct GatewayBuilder {
    name: String,
    binary: PathBuf,
    directory: Arc<TempDir>,
    /// `section`, `key`, value in TOML.
    settings: Vec<(String, String, String)>,
    tables: String,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    namespace: Option<Arc<Namespace>>,
    start: Duration,
}

impl GatewayBuilder {
    /// A gateway of its own data directory that is in no topic and finds nobody.
    pub fn new(binary: &str, name: &str) -> Self {
        let builder = Self {
            name: name.to_owned(),
            binary: binary.into(),
            directory: Arc::new(TempDir::with_prefix("nostr-gateway-test-").unwrap()),
            settings: Vec::new(),
            tables: String::new(),
            environment: Vec::new(),
            arguments: Vec::new(),
            namespace: None,
            start: START,
        };
        builder
            .set("relay", "listen", r#""127.0.0.1:0""#)
            .set("admin", "listen", r#""127.0.0.1:0""#)
            .set("endpoint", "bind", r#""127.0.0.1:0""#)
            .set("endpoint", "iroh_relays", r#""disabled""#)
            .set("discovery", "dht", "false")
            .set("discovery", "mdns", "false")
            // Never the keyring of whoever runs the tests.
            .set("secrets", "store", r#""file""#)
            .topics(&[])
    }

    /// Sets a key of the configuration file, in place of an earlier value. `value` is TOML.
    pub fn set(mut self, section: &str, key: &str, value: &str) -> Self {
        self.settings.retain(|(s, k, _)| (s.as_str(), k.as_str()) != (section, key));
        self.settings.push((section.to_owned(), key.to_owned(), value.to_owned()));
        self
    }

    /// Takes a key out of the file again, for the environment or the default to decide.
    pub fn unset(mut self, section: &str, key: &str) -> Self {
        self.settings.retain(|(s, k, _)| (s.as_str(), k.as_str()) != (section, key));
        self
    }

    /// Appends tables such as `[[upstream]]`.
    pub fn table(mut self, toml: &str) -> Self {
        let _ = writeln!(self.tables, "{toml}");
        self
    }

    /// Takes all tables out again.
    pub fn no_tables(mut self) -> Self {
        self.tables.clear();
        self
    }

    /// The topics to join. What is published on `/` goes to none but those its tags name.
    pub fn topics(self, names: &[&str]) -> Self {
        self.set("topics", "join", &list(names)).set("topics", "default", "[]")
    }

    /// Discovers others in this DHT.
    pub fn dht(self, testnet: &Testnet) -> Self {
        self.set("discovery", "dht", "true")
            .set("discovery", "dht_bootstrap", &list(&testnet.bootstrap))
            .set("discovery", "dht_private_addresses", "true")
    }

    /// Streams everything that a relay has into a topic.
    pub fn upstream(self, name: &str, url: &str, topic: &str) -> Self {
        self.table(&format!(
            "[[upstream]]\nname = {name:?}\nurls = [{url:?}]\ndirection = \"down\"\ntopics = [{topic:?}]"
        ))
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// An argument after `run`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// How long a start may take, where a minute is not enough.
    pub fn start_within(mut self, start: Duration) -> Self {
        self.start = start;
        self
    }

    /// Runs it in a network namespace, reachable there from this process.
    pub fn namespace(mut self, namespace: Arc<Namespace>) -> Self {
        let any = format!(r#""{}:0""#, namespace.address());
        self.namespace = Some(namespace);
        self.set("relay", "listen", &any)
            .set("admin", "listen", &any)
            .set("endpoint", "bind", &any)
            .set("access", "read", r#""open""#)
            .set("access", "write", r#""open""#)
    }

    /// Installs a shipped plugin with this `[config]` and these grants, as if its folder had been
    /// copied, edited and allowed.
    pub fn shipped(self, name: &str, config: &str, grant: &[&str]) -> Self {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins").join(name);
        let folder = self.plugin_folder(name);
        for file in [&format!("{name}.wasm"), "config.schema.json"] {
            fs::copy(shipped.join(file), folder.join(file)).unwrap();
        }
        let manifest = fs::read_to_string(shipped.join("plugin.toml")).unwrap();
        let (rest, _) = manifest.split_once("\n[config]\n").expect("it has a [config]");
        fs::write(folder.join("plugin.toml"), format!("{rest}\n[config]\n{config}\n")).unwrap();
        let file = self.data_dir().join("grants.toml");
        let mut grants = fs::read_to_string(&file).unwrap_or_default();
        if !grant.is_empty() && !grants.contains(&format!("[{name}]")) {
            let _ = writeln!(grants, "[{name}]\ngrant = {}", list(grant));
            fs::write(file, grants).unwrap();
        }
        self
    }

    /// Installs the shipped blocklist plugin with these lists.
    pub fn blocklist(self, authors: &[&str], words: &[&str]) -> Self {
        let config = format!("authors = {}\nwords = {}", list(authors), list(words));
        self.shipped("blocklist", &config, &[])
    }

    /// Installs the shipped plugin that rotates secrets after so many seconds.
    pub fn rotate_by_age(self, max_age: u64) -> Self {
        self.shipped("rotate-by-age", &format!("max_age = {max_age}"), &[]).set(
            "plugins",
            "rotation_check_s",
            "1",
        )
    }

    /// Lets that plugin leave out members that were not seen for so many seconds.
    pub fn drop_unseen_after(self, seconds: u64) -> Self {
        let file = self.plugin_folder("rotate-by-age").join("plugin.toml");
        let manifest = fs::read_to_string(&file).unwrap();
        // Its `[config]` stands at the end.
        fs::write(file, format!("{manifest}drop_unseen_after = {seconds}\n")).unwrap();
        self
    }

    /// The folder of a plugin in the data directory, created.
    pub fn plugin_folder(&self, id: &str) -> PathBuf {
        let folder = self.data_dir().join("plugins").join(id);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn config_file(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    /// Starts it and waits for `ready`.
    pub async fn start(self) -> Gateway {
        let child = self.spawn();
        Gateway::ready(self, child).await
    }

    /// Starts it without waiting: for starts that fail.
    pub fn spawn(&self) -> Child {
        fs::write(self.config_file(), self.config_text()).unwrap();
        let mut arguments = vec!["run"];
        arguments.extend(self.arguments.iter().map(String::as_str));
        Child::spawn(format!("gateway {}", self.name), self.program(&arguments))
    }

    /// Runs another command of the program, with the same data directory and configuration, to its
    /// end.
    pub async fn command(&self, arguments: &[&str]) -> Finished {
        self.finish(self.begin(arguments)).await
    }

    /// Starts another command of the program without waiting for its end.
    pub fn begin(&self, arguments: &[&str]) -> Child {
        fs::write(self.config_file(), self.config_text()).unwrap();
        let name = format!("{} of {}", arguments.join(" "), self.name);
        Child::spawn(name, self.program(arguments))
    }

    /// Waits for the end of a command.
    pub async fn finish(&self, mut child: Child) -> Finished {
        let status = child.exit(COMMAND).await;
        let text = |lines: Vec<String>| lines.iter().map(|line| format!("{line}\n")).collect();
        Finished { code: status.code(), stdout: text(child.stdout()), stderr: text(child.stderr()) }
    }

    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.namespace {
            Some(namespace) => namespace.command(&self.binary),
            None => Command::new(&self.binary),
        };
        command.arg("--config").arg(self.config_file());
        command.arg("--data-dir").arg(self.data_dir());
        command.args(arguments);
        command.current_dir(self.directory.path());
        // Nothing of the developer's own settings comes in.
        for (name, _) in std::env::vars() {
            if name.starts_with("NOSTR_GATEWAY_") {
                command.env_remove(name);
            }
        }
        command
            .env(
                "RUST_LOG",
                std::env::var("TEST_LOG").unwrap_or_else(|_| "info,nostr_gateway=debug".to_owned()),
            )
            .env("RUST_BACKTRACE", "1");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn config_text(&self) -> String {
        let mut sections: Vec<&str> = self.settings.iter().map(|(s, ..)| s.as_str()).collect();
        sections.sort();
        sections.dedup();
        let mut text = String::new();
        for section in sections {
            let _ = writeln!(text, "[{section}]");
            for (_, key, value) in self.settings.iter().filter(|(s, ..)| s == section) {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        text + &self.tables
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// What it printed as JSON, after it succeeded.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that it did what it was told.
    pub fn succeeded(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
    }

    /// Checks that it ended with this exit code, printed nothing, and said all of these words.
    pub fn refuses(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        assert!(words.iter().all(|word| self.stderr.contains(word)), "{words:?}: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }
}

/// A gateway that is ready.
pub struct Gateway {
    builder: GatewayBuilder,
    child: Child,
    /// `IP:PORT` of the relay.
    pub relay: String,
    /// `IP:PORT` of the admin listener.
    pub admin: String,
    /// The endpoint id, in hexadecimal.
    pub endpoint: String,
}

impl Gateway {
    async fn ready(builder: GatewayBuilder, child: Child) -> Self {
        child.stdout_line(builder.start, |line| line == "ready").await;
        let banner = child.stdout();
        let field = |name: &str| {
            let mut values = banner.iter().filter_map(|line| line.trim_start().strip_prefix(name));
            let value = values.find(|value| value.starts_with(' '));
            value
                .unwrap_or_else(|| panic!("the banner has no {name}: {banner:?}"))
                .trim()
                .to_owned()
        };
        // A listener on all addresses is reached by the namespace's own.
        let own = builder.namespace.as_ref().map(|n| n.address().to_string());
        let address = |url: String, scheme: &str| {
            let address = url.strip_prefix(scheme).unwrap_or_else(|| panic!("{url}"));
            let (host, port) = address.trim_end_matches('/').rsplit_once(':').unwrap();
            format!("{}:{port}", own.as_deref().unwrap_or(host))
        };
        let relay = address(field("relay"), "ws://");
        let admin = address(field("admin"), "http://");
        let endpoint = field("endpoint");
        assert!(endpoint.len() == 64, "the endpoint id has 64 digits: {endpoint}");
        Self { builder, child, relay, admin, endpoint }
    }

    /// The relay's root URL.
    pub fn url(&self) -> String {
        format!("ws://{}/", self.relay)
    }

    /// The URL of a topic. `name` is percent-encoded already.
    pub fn topic_url(&self, name: &str) -> String {
        format!("ws://{}/topic/{name}", self.relay)
    }

    /// Changes its configuration file while it runs.
    pub fn configure(&mut self, change: impl FnOnce(GatewayBuilder) -> GatewayBuilder) {
        self.builder = change(self.builder.clone());
        fs::write(self.builder.config_file(), self.builder.config_text()).unwrap();
    }

    /// Writes something else into its configuration file, until a command of the harness writes it anew.
    pub fn spoil_configuration(&self, text: &str) {
        fs::write(self.builder.config_file(), text).unwrap();
    }

    /// A stream as `status` shows it.
    pub async fn stream(&self, name: &str) -> Value {
        let status = self.status().await;
        let mut streams = status["upstreams"].as_array().unwrap().iter();
        streams.find(|stream| stream["name"] == name).cloned().unwrap_or(Value::Null)
    }

    /// Waits until the status of a stream is as is wanted.
    pub async fn wait_for_stream(
        &self,
        name: &str,
        what: &str,
        deadline: Duration,
        is_so: impl Fn(&Value) -> bool,
    ) -> Value {
        let what = format!("stream {name} of {}: {what}", self.builder.name);
        eventually(&what, deadline, async || {
            let stream = self.stream(name).await;
            is_so(&stream).then_some(stream)
        })
        .await
    }

    /// Runs another command of the program, with the same data directory.
    pub async fn command(&self, arguments: &[&str]) -> Finished {
        self.builder.command(arguments).await
    }

    /// The configuration file, to be changed while it runs.
    pub fn config_file(&self) -> PathBuf {
        self.builder.config_file()
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.builder.data_dir().join("control.sock")
    }

    /// This gateway as an entry of `discovery.peers` of others.
    pub async fn as_peer(&self) -> String {
        let status = self.status().await;
        format!("{}@{}", self.endpoint, status["addresses"][0].as_str().unwrap())
    }

    /// `GET /status` of the admin listener.
    pub async fn status(&self) -> Value {
        let response = http::get(&self.admin, "/status").await;
        assert_eq!(response.status, 200, "{response:?}");
        serde_json::from_str(&response.body).unwrap()
    }

    /// The sum of a metric over all its labels. `name` may end in labels that must be there, as in
    /// `nostr_gateway_events_total{origin="gossip"`.
    pub async fn metric(&self, name: &str) -> u64 {
        let response = http::get(&self.admin, "/metrics").await;
        assert_eq!(response.status, 200, "{response:?}");
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let labels: Vec<&str> = labels.split(',').collect();
        let samples = response.body.lines().filter(|line| {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            &line[..end] == name && labels.iter().all(|label| line.contains(label))
        });
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// Waits until a metric has at least this value.
    pub async fn wait_for_metric(&self, name: &str, at_least: u64, deadline: Duration) {
        eventually(
            &format!("{name} of {} ≥ {at_least}", self.builder.name),
            deadline,
            async || (self.metric(name).await >= at_least).then_some(()),
        )
        .await;
    }

    /// The status of one topic.
    pub async fn topic_status(&self, topic: &str) -> Value {
        let status = self.status().await;
        let topics = status["topics"].as_array().unwrap();
        let found = topics.iter().find(|t| t["name"] == topic).cloned();
        found.unwrap_or_else(|| panic!("the status has no topic {topic}: {status}"))
    }

    /// Waits until the topic has so many neighbors.
    pub async fn wait_for_neighbors(&self, topic: &str, count: usize, deadline: Duration) {
        let what = format!("{count} neighbors of {} in {topic}", self.builder.name);
        eventually(&what, deadline, async || {
            let status = self.topic_status(topic).await;
            (status["neighbors"].as_array().unwrap().len() >= count).then_some(())
        })
        .await;
    }

    /// Waits for a line in the log.
    pub async fn log_line(&self, deadline: Duration, wanted: impl Fn(&str) -> bool) -> String {
        self.child.stderr_line(deadline, wanted).await
    }

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        self.child.stderr()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.is_running()
    }

    /// SIGKILL, while it works.
    pub async fn kill9(&mut self) {
        self.child.kill().await;
    }

    /// The process id. In a namespace, `ip netns exec` becomes the program.
    pub fn pid(&self) -> u32 {
        self.child.pid().expect("the gateway runs")
    }

    pub fn signal(&self, signal: &str) {
        self.child.signal(signal);
    }

    /// Waits for its end, without asking for it.
    pub async fn exit(&mut self) -> ExitStatus {
        self.child.exit(STOP).await
    }

    /// Ctrl-C, and waits for the end.
    pub async fn interrupt(&mut self) -> ExitStatus {
        self.signal("INT");
        self.exit().await
    }

    /// Starts it again after its end, as a configured relay is: same data directory, same address.
    pub async fn restart_in_place(mut self) -> Self {
        self.builder = self.builder.set("relay", "listen", &format!("{:?}", self.relay));
        self.restart().await
    }

    /// The same with other settings.
    pub async fn restart_with(
        mut self,
        change: impl FnOnce(GatewayBuilder) -> GatewayBuilder,
    ) -> Self {
        self.builder = change(self.builder);
        self.restart().await
    }

    /// Starts it again after its end, with the same data directory. The ports may differ.
    pub async fn restart(self) -> Self {
        let Self { builder, mut child, .. } = self;
        assert!(!child.is_running(), "it still runs");
        builder.start().await
    }
}

/// A TOML list of strings.
fn list<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("{:?}", item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}
