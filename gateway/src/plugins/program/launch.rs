//! How a program is started: from its folder, with next to nothing of the gateway's environment.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::{Child, Command};

/// The variables that a program gets, if they are set: where other programs are, and how texts and
/// times are written. Whatever else the gateway was given may be secret.
const ENVIRONMENT: &[&str] =
    &["PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SYSTEMROOT", "PATHEXT"];

/// The hidden command of the gateway's own executable that becomes the program.
pub const COMMAND: &str = "become-program";

/// What to start.
#[derive(Debug, Clone)]
pub struct Launch {
    program: OsString,
    arguments: Vec<String>,
    folder: PathBuf,
    /// The gateway's own executable, if it understands [`COMMAND`].
    launcher: Option<PathBuf>,
}

impl Launch {
    /// `words` are the program and its arguments; one with a `/` in its name is meant from the folder.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be executed. The text names it.
    pub fn new(folder: &Path, words: &[String], launcher: Option<&Path>) -> Result<Self, String> {
        let folder = folder.canonicalize().map_err(|error| format!("{error}"))?;
        let (name, arguments) = words.split_first().ok_or_else(|| "no program".to_owned())?;
        let program = if name.contains('/') {
            let path = folder.join(name);
            is_executable(&path).map_err(|error| format!("{name}: {error}"))?;
            path.into_os_string()
        } else {
            name.into()
        };
        let (arguments, launcher) = (arguments.to_vec(), launcher.map(Path::to_owned));
        Ok(Self { program, arguments, folder, launcher })
    }

    /// Starts it, in a process group of its own.
    ///
    /// # Errors
    /// When the system cannot.
    pub fn start(&self) -> io::Result<Child> {
        let mut command = match &self.launcher {
            Some(launcher) => {
                let mut command = Command::new(launcher);
                command.arg(COMMAND).arg(std::process::id().to_string()).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .args(&self.arguments)
            .current_dir(&self.folder)
            .env_clear()
            .envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        #[cfg(unix)]
        command.process_group(0);
        command.spawn()
    }
}

fn is_executable(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("that is not a file".to_owned());
    }
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 == 0 {
        return Err("it is not executable: chmod +x, or name what runs it, as in program = \
                    [\"python3\", \"policy.py\"]"
            .to_owned());
    }
    Ok(())
}

/// Becomes a program that ends when the gateway does, whatever ends it. Never called in the gateway
/// itself: it runs in the process that is to become the program. The words are the gateway's process
/// id, the program, and its arguments. Comes back only with what is wrong.
#[cfg(unix)]
pub fn become_program(mut words: impl Iterator<Item = OsString>) -> String {
    use std::os::unix::process::CommandExt;
    let gateway = words.next().and_then(|word| word.to_str()?.parse::<i32>().ok());
    let Some(program) = words.next() else { return "no program to become".to_owned() };
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};
        if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
            return format!("cannot be bound to the gateway's life: {error}");
        }
        // It may have ended before.
        let parent = getppid().map(|parent| parent.as_raw_nonzero().get());
        if parent != gateway {
            return "the gateway is gone".to_owned();
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = gateway;
    let error = std::process::Command::new(&program).args(words).exec();
    format!("{}: {error}", program.to_string_lossy())
}
