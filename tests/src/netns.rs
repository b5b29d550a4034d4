//! Networks made of Linux network namespaces: a switch, hosts on it, and nothing beyond.

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
};

/// The host names that DHT clients without a setting for it start from.
pub const PUBLIC_BOOTSTRAP: [&str; 4] =
    ["router.bittorrent.com", "dht.transmissionbt.com", "dht.libtorrent.org", "relay.pkarr.org"];

static NETWORKS: AtomicU8 = AtomicU8::new(0);

/// A switch, and this process as a host on it (address `.254`). All is removed when it is dropped.
pub struct Network {
    pub(crate) prefix: String,
    subnet: [u8; 3],
    switch: String,
}

/// A host on the switch, or one with a loopback interface alone.
pub struct Namespace {
    pub(crate) name: String,
    address: Ipv4Addr,
}

impl Network {
    /// A new network, or `None` where namespaces cannot be made: then one line says that `scenario`
    /// did not run. Where they are required (in CI) that is a failure.
    pub fn available(scenario: &str) -> Option<Self> {
        let missing = match Command::new("ip").args(["netns", "list"]).output() {
            Err(_) => "the command ip is missing",
            Ok(_) if !is_root() => "network namespaces need root",
            Ok(_) if Command::new("nft").arg("--version").output().is_err() => {
                "the command nft is missing"
            }
            Ok(_) => return Some(Self::create()),
        };
        let required = ["CI", "NOSTR_GATEWAY_REQUIRE_NETNS"]
            .iter()
            .any(|name| std::env::var(name).is_ok_and(|value| value == "true" || value == "1"));
        assert!(!required, "{scenario} cannot run: {missing}");
        crate::report(&format!("{scenario} did not run: {missing}"));
        None
    }

    fn create() -> Self {
        let count = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        // Interface names have at most 15 characters.
        let prefix = format!("ng{:x}n{count}", process & 0xf_ffff);
        let subnet = [10, 64 + (process % 128) as u8, count];
        let network = Self { switch: format!("{prefix}-sw"), prefix, subnet };
        ip(&["netns", "add", &network.switch]);
        ip(&["-n", &network.switch, "link", "add", "br0", "type", "bridge"]);
        // Multicast goes to every port, as on a plain switch: mDNS needs it.
        ip(&["-n", &network.switch, "link", "set", "br0", "type", "bridge", "mcast_snooping", "0"]);
        ip(&["-n", &network.switch, "link", "set", "br0", "up"]);
        // This process is a host as well, so that its clients reach the gateways.
        let (own, port) = (format!("{}h", network.prefix), format!("{}hp", network.prefix));
        ip(&["link", "add", &own, "type", "veth", "peer", "name", &port, "netns", &network.switch]);
        ip(&["-n", &network.switch, "link", "set", &port, "master", "br0", "up"]);
        let address = format!("{}/24", network.host(254));
        ip(&["addr", "add", &address, "dev", &own]);
        ip(&["link", "set", &own, "up"]);
        network
    }

    /// The address of the host with this number.
    pub fn host(&self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, number)
    }

    /// The first three numbers of all addresses, with a dot at the end.
    pub fn address_prefix(&self) -> String {
        let [a, b, c] = self.subnet;
        format!("{a}.{b}.{c}.")
    }

    /// Adds a host. The public bootstrap names of the DHT resolve to host `dht` there.
    pub fn add(&self, label: &str, number: u8, dht: u8) -> Namespace {
        let namespace = self.bare(label, self.host(number), self.host(dht));
        let port = format!("{}p{number}", self.prefix);
        let (name, switch) = (namespace.name.as_str(), self.switch.as_str());
        ip(&[
            "-n", switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
            name,
        ]);
        ip(&["-n", switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", name, "addr", "add", &format!("{}/24", namespace.address), "dev", "eth0"]);
        ip(&["-n", name, "link", "set", "eth0", "up"]);
        // Leads nowhere. Without a default route, sockets have no address to send from.
        ip(&["-n", name, "route", "add", "default", "via", &self.host(253).to_string()]);
        namespace
    }

    /// Takes a host's cable out, or puts it in again.
    pub fn cut(&self, host: &Namespace, out: bool) {
        let port = format!("{}p{}", self.prefix, host.address.octets()[3]);
        let state = if out { "down" } else { "up" };
        ip(&["-n", &self.switch, "link", "set", &port, state]);
    }

    /// Of the UDP datagrams that arrive at a host, so many in a hundred are lost. 0 ends it.
    pub fn lose(&self, host: &Namespace, percent: u8) {
        let rule = format!("meta l4proto udp numgen random mod 100 < {percent} drop");
        host.filter("loss", "input", if percent == 0 { "" } else { &rule });
    }

    /// Lets two hosts reach all others and not one another.
    pub fn part(&self, one: &Namespace, other: &Namespace) {
        for (here, there) in [(one, other), (other, one)] {
            let address = format!("{}/32", there.address);
            ip(&["-n", &here.name, "route", "add", "blackhole", &address]);
        }
    }

    /// Undoes [`Self::part`].
    pub fn heal(&self, one: &Namespace, other: &Namespace) {
        for (here, there) in [(one, other), (other, one)] {
            let address = format!("{}/32", there.address);
            ip(&["-n", &here.name, "route", "del", "blackhole", &address]);
        }
    }

    /// Adds a host without a network: loopback alone.
    pub fn add_isolated(&self, label: &str) -> Namespace {
        self.bare(label, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST)
    }

    pub(crate) fn bare(&self, label: &str, address: Ipv4Addr, dht: Ipv4Addr) -> Namespace {
        let name = format!("{}-{label}", self.prefix);
        let namespace = Namespace { name, address };
        let etc = namespace.etc();
        fs::create_dir_all(&etc).unwrap();
        let hosts = format!("127.0.0.1 localhost\n{dht} {}\n", PUBLIC_BOOTSTRAP.join(" "));
        fs::write(etc.join("hosts"), hosts).unwrap();
        // Nobody answers there: other names fail at once.
        fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        ip(&["netns", "add", &namespace.name]);
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"]);
        namespace
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The veth pairs go with their namespace, the hosts with their own Drop.
        remove_namespace(&self.switch);
    }
}

impl Namespace {
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that runs in this namespace. Signals to it reach the program itself.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Takes mDNS away from this host, or gives it back.
    pub fn without_mdns(&self, without: bool) {
        let rule = if without { "udp dport 5353 drop" } else { "" };
        self.filter("mdns-in", "input", rule);
        self.filter("mdns-out", "output", rule);
    }

    /// Cuts the UDP between this host and others off, both ways, or lets it through again. TCP goes
    /// on, so that the scenario can watch.
    pub fn cut_udp(&self, out: bool) {
        let rule = if out { "meta l4proto udp drop" } else { "" };
        self.filter("cut-in", "input", rule);
        self.filter("cut-out", "output", rule);
    }

    /// A table of the packet filter with one rule, in place of an earlier one of this name.
    pub fn filter(&self, table: &str, hook: &str, rule: &str) {
        let rules = format!(
            "table inet {table}\ndelete table inet {table}\ntable inet {table} {{\nchain c {{\n\
             type filter hook {hook} priority 0;\n{rule}\n}}\n}}\n"
        );
        self.nft(&rules);
    }

    /// Applies rules of nftables.
    pub fn nft(&self, rules: &str) {
        let mut command = self.command(Path::new("nft"));
        command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut nft = command.spawn().unwrap();
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        let output = nft.wait_with_output().unwrap();
        assert!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove_namespace(&self.name);
        let _ = fs::remove_dir_all(self.etc());
    }
}

fn remove_namespace(name: &str) {
    // Drop also runs while a failed test unwinds: a second panic would hide the first.
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {errors}", arguments.join(" "));
}

/// Reads the effective user id from the kernel.
fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        == Some("0")
}
