//! A desktop without a screen: a D-Bus session bus of its own, and on it gnome-keyring as the Secret
//! Service, in a home directory of its own.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tempfile::TempDir;

use crate::{Child, GatewayBuilder};

const START: Duration = Duration::from_secs(20);

const PASSWORD: &str = "the password of nobody";

/// Where the keyring's files are, from one session to the next.
pub struct Keyring {
    home: TempDir,
}

/// A session bus, which ends with all that is on it when it is dropped.
pub struct SessionBus {
    address: String,
    _runtime: TempDir,
    _bus: Child,
    _daemon: Option<Child>,
}

impl Keyring {
    /// An empty home, or `None` where the programs are missing: then one line says that `scenario`
    /// did not run. Where they are required (in CI) that is a failure.
    pub fn available(scenario: &str) -> Option<Self> {
        let missing = ["dbus-daemon", "gnome-keyring-daemon"].into_iter().find(|program| {
            let version = Command::new(program).arg("--version").output();
            !version.is_ok_and(|output| output.status.success())
        });
        let Some(missing) = missing else {
            let home = TempDir::with_prefix("nostr-gateway-keyring-").unwrap();
            return Some(Self { home });
        };
        let required = ["CI", "NOSTR_GATEWAY_REQUIRE_KEYRING"]
            .iter()
            .any(|name| std::env::var(name).is_ok_and(|value| value == "true" || value == "1"));
        assert!(!required, "{scenario} cannot run: {missing} is missing");
        crate::report(&format!("{scenario} did not run: {missing} is missing"));
        None
    }

    /// A session in which the keyring is unlocked, made at the first time.
    pub async fn unlocked(&self) -> SessionBus {
        let mut bus = self.bus("").await;
        let mut daemon = self.daemon(&bus, &["--unlock"]);
        daemon.end_input(PASSWORD).await;
        bus.wait_for_service().await;
        bus._daemon = Some(daemon);
        bus
    }

    /// A session after a login without a password: the keyring is there and locked, and nobody
    /// answers its prompts.
    pub async fn locked(&self) -> SessionBus {
        let mut bus = self.bus("").await;
        let daemon = self.daemon(&bus, &[]);
        bus.wait_for_service().await;
        bus._daemon = Some(daemon);
        bus
    }

    /// A session bus on which there is no keyring.
    pub async fn without_service(&self) -> SessionBus {
        self.bus("").await
    }

    /// A session bus that starts, for whoever asks for the Secret Service, this program.
    pub async fn with_service_that_hangs(&self) -> SessionBus {
        self.bus("org.freedesktop.secrets").await
    }

    /// All files of the keyring, as bytes.
    pub fn files(&self) -> Vec<u8> {
        let folder = self.home.path().join(".local/share/keyrings");
        let files = fs::read_dir(folder).into_iter().flatten().map(|file| file.unwrap().path());
        files.flat_map(|file| fs::read(file).unwrap()).collect()
    }

    /// A bus that starts nothing on its own but `hanging`, which never answers.
    async fn bus(&self, hanging: &str) -> SessionBus {
        let runtime = TempDir::with_prefix("ngk").unwrap();
        fs::set_permissions(runtime.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let services = runtime.path().join("services");
        fs::create_dir(&services).unwrap();
        if !hanging.is_empty() {
            let service = format!("[D-BUS Service]\nName={hanging}\nExec=/bin/sleep 300\n");
            fs::write(services.join("hanging.service"), service).unwrap();
        }
        let socket = runtime.path().join("bus");
        let address = format!("unix:path={}", socket.display());
        let config = runtime.path().join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>{address}</listen>\
             <servicedir>{}</servicedir><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
             <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
            services.display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--nopidfile", "--print-address"]);
        command.arg(format!("--config-file={}", config.display()));
        let bus = Child::spawn("dbus-daemon", command);
        let address = bus.stdout_line(START, |line| line.starts_with("unix:")).await;
        SessionBus { address, _runtime: runtime, _bus: bus, _daemon: None }
    }

    fn daemon(&self, bus: &SessionBus, arguments: &[&str]) -> Child {
        let mut command = Command::new("gnome-keyring-daemon");
        command.args(["--foreground", "--components=secrets"]).args(arguments);
        self.environment(bus, |name, value| {
            command.env(name, value);
        });
        Child::spawn("gnome-keyring-daemon", command)
    }

    fn environment(&self, bus: &SessionBus, mut set: impl FnMut(&str, &Path)) {
        let home = self.home.path();
        set("HOME", home);
        set("XDG_DATA_HOME", &home.join(".local/share"));
        set("XDG_CONFIG_HOME", &home.join(".config"));
        set("XDG_CACHE_HOME", &home.join(".cache"));
        set("XDG_RUNTIME_DIR", bus._runtime.path());
        set("DBUS_SESSION_BUS_ADDRESS", &PathBuf::from(&bus.address));
    }
}

impl SessionBus {
    /// A gateway in this session.
    pub fn for_gateway(&self, builder: GatewayBuilder) -> GatewayBuilder {
        builder.env("DBUS_SESSION_BUS_ADDRESS", &self.address)
    }

    /// How many entries the Secret Service has under this service, whether it is unlocked or not.
    pub fn entries(&self, service: &str) -> usize {
        let output = Command::new("dbus-send")
            .args(["--session", "--print-reply", "--dest=org.freedesktop.secrets"])
            .args(["/org/freedesktop/secrets", "org.freedesktop.Secret.Service.SearchItems"])
            .arg(format!("dict:string:string:service,{service}"))
            .env("DBUS_SESSION_BUS_ADDRESS", &self.address)
            .output()
            .expect("dbus-send comes with dbus-daemon");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).matches("object path").count()
    }

    async fn wait_for_service(&self) {
        crate::eventually("the Secret Service is on the bus", START, async || {
            let output = Command::new("dbus-send")
                .args(["--session", "--print-reply", "--dest=org.freedesktop.DBus", "/"])
                .args(["org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.secrets"])
                .env("DBUS_SESSION_BUS_ADDRESS", &self.address)
                .output()
                .expect("dbus-send comes with dbus-daemon");
            String::from_utf8_lossy(&output.stdout).contains("boolean true").then_some(())
        })
        .await;
    }
}
