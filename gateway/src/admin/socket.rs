//! The control socket in the data directory, on which the command line talks to the running gateway.
//! Whoever can open it may do everything, so it is its owner's alone; no web page can reach it.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{Method, Request, StatusCode, body::Incoming, header::CONTENT_TYPE};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use super::{
    Admin,
    api::{Cause, Command, Lines, Refusal},
    http::{self, Answer},
};
use crate::tasks::Tasks;

/// The socket's name in the data directory.
pub const FILE: &str = "control.sock";

/// Commands at once.
const MAX_CONNECTIONS: usize = 16;
/// How long one command may take. A sync of a large topic takes minutes.
const DEADLINE: Duration = Duration::from_secs(3_600);

/// The longest path that a socket's address can hold (`sun_path`), where it is shortest.
const MAX_PATH: usize = 103;

/// The listening socket. Its file is removed when this is dropped.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Makes the socket in a data directory that is ours: one that a killed gateway left there is
    /// replaced.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn bind(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.file_type().is_socket()) {
            let text = format!("{} is in the way: it is no socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        // Under another name first: nobody may open it before it is ours alone.
        let draft = data_dir.join("control.new");
        remove(&draft)?;
        let (_directory, address) = address(data_dir, "control.new")?;
        let listener = UnixListener::bind(address)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
        fs::rename(&draft, &path)?;
        Ok(Self { listener, path })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(%error, "cannot remove {}", self.path.display());
        }
    }
}

/// Connects to the gateway that runs in a data directory.
///
/// # Errors
/// `NotFound` and `ConnectionRefused` mean that none is running there.
pub async fn connect(data_dir: &Path) -> io::Result<UnixStream> {
    let (_directory, address) = address(data_dir, FILE)?;
    UnixStream::connect(address).await
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An address of a file in a directory that is short enough, and what must live as long as it is
/// used.
fn address(directory: &Path, file: &str) -> io::Result<(Option<fs::File>, PathBuf)> {
    let path = directory.join(file);
    if path.as_os_str().len() <= MAX_PATH {
        return Ok((None, path));
    }
    let too_long = || {
        let text = format!("{} is too long for the address of a socket", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    if !cfg!(target_os = "linux") {
        return Err(too_long());
    }
    use std::os::fd::AsRawFd;
    let open = fs::File::open(directory)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd())).join(file);
    Ok((Some(open), short))
}

impl Admin {
    /// Serves the control socket until the token of `tasks` is cancelled.
    pub async fn run_control(self: Arc<Self>, socket: ControlSocket, tasks: Tasks) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = tasks.token().cancelled() => return,
                accepted = socket.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let admin = self.clone();
            let serving = async move {
                let answer = move |request| admin.clone().obey(request);
                let served = http::serve(stream, answer);
                if let Ok(Err(error)) = tokio::time::timeout(DEADLINE, served).await {
                    tracing::debug!(%error, "a command failed");
                }
                drop(permit);
            };
            let token = tasks.token().clone();
            tasks.spawn("control", async move {
                token.run_until_cancelled(serving).await;
            });
        }
    }

    /// `POST /control` with a command as JSON.
    async fn obey(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        if request.uri().path() != "/control" {
            return http::text(StatusCode::NOT_FOUND, "not found\n");
        }
        if request.method() != Method::POST {
            return http::text(StatusCode::METHOD_NOT_ALLOWED, "POST only\n");
        }
        let kind = request.headers().get(CONTENT_TYPE);
        let is_lines = kind.is_some_and(|kind| kind == http::LINES);
        let command = http::body(request).await.and_then(|body| match is_lines {
            true => with_lines(&body),
            false => read(&body),
        });
        match command {
            Ok(command) => {
                tracing::debug!(?command, "a command");
                self.carry_out(command).await
            }
            Err(error) => http::refused(&Refusal::new(Cause::Wrong, error)),
        }
    }
}

fn read(text: &[u8]) -> Result<Command, String> {
    serde_json::from_slice(text).map_err(|error| format!("this is no command: {error}"))
}

/// The command in the first line; what it takes in follows as it is, which spares both sides to write it
/// as a text of JSON.
fn with_lines(body: &[u8]) -> Result<Command, String> {
    let end = body.iter().position(|byte| *byte == b'\n').unwrap_or(body.len());
    let (first, rest) = body.split_at(end);
    let mut command = read(first)?;
    let Command::Import { events: Lines(events), .. } = &mut command else {
        return Err("only an import has lines behind the command".to_owned());
    };
    let rest = std::str::from_utf8(rest.get(1..).unwrap_or_default());
    rest.map_err(|error| format!("the lines are not UTF-8: {error}"))?.clone_into(events);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_replaces_a_stale_one() {
        let data = TempDir::new().unwrap();
        let absent = connect(data.path()).await.unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
        // What a killed gateway leaves.
        drop(std::os::unix::net::UnixListener::bind(data.path().join(FILE)).unwrap());
        let stale = connect(data.path()).await.unwrap_err();
        assert_eq!(stale.kind(), io::ErrorKind::ConnectionRefused);
        let socket = ControlSocket::bind(data.path()).unwrap();
        assert_eq!(mode(&data.path().join(FILE)), 0o600);
        connect(data.path()).await.unwrap();
        drop(socket);
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);

        fs::write(data.path().join(FILE), "somebody's").unwrap();
        assert!(ControlSocket::bind(data.path()).is_err());
        assert_eq!(fs::read_to_string(data.path().join(FILE)).unwrap(), "somebody's");
    }

    #[test]
    fn lines_follow_the_command_as_they_are() {
        let command = with_lines(b"{\"command\":\"import\",\"first\":7}\n{\"a\":1}\n\nx").unwrap();
        let events = Lines("{\"a\":1}\n\nx".to_owned());
        assert_eq!(command, Command::Import { events, first: 7, topics: None });
        let none = with_lines(b"{\"command\":\"import\",\"first\":1}").unwrap();
        assert_eq!(none, Command::Import { events: Lines::default(), first: 1, topics: None });
        for wrong in [
            &b"{\"command\":\"status\"}\nx"[..],
            b"",
            b"\n",
            b"{\"command\":\"import\",\"first\":1}\n\xff",
        ] {
            assert!(with_lines(wrong).is_err());
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_long_path_is_no_obstacle() {
        let data = TempDir::new().unwrap();
        let long = data.path().join("x".repeat(150));
        fs::create_dir(&long).unwrap();
        let socket = ControlSocket::bind(&long).unwrap();
        connect(&long).await.unwrap();
        drop(socket);
        assert_eq!(connect(&long).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
