//! Talking to the running gateway over the control socket.

#[cfg(unix)]
use std::fs::{File, TryLockError};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::Value;

use super::{Overrides, Places, USAGE, sources};
use crate::{
    admin::api::{Cause, Command, Refusal},
    config,
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(not(unix), allow(dead_code, reason = "there is nobody to ask"))]
pub(super) enum Failure {
    #[error(
        "no gateway is running in {}; start it with `nostr-gateway run`, or name another data \
         directory with --data-dir",
        .0.display()
    )]
    NotRunning(PathBuf),
    #[error(
        "somebody works in {}: a gateway that is starting or stopping, or has no control socket (its log \
         tells), or another command; try again when it has ended",
        .0.display()
    )]
    NotListening(PathBuf),
    #[error("{}", .0.error)]
    Refused(Refusal),
    #[error("cannot talk to the gateway in {}: {why}", path.display())]
    Broken { path: PathBuf, why: String },
    #[error("interrupted; what was done up to then is done")]
    Interrupted,
}

impl Failure {
    /// Says it on the standard error.
    pub fn report(&self) -> ExitCode {
        eprintln!("{self}");
        match self {
            Self::Refused(Refusal { cause: Cause::Wrong, .. }) => ExitCode::from(USAGE),
            Self::Interrupted => ExitCode::from(super::run::INTERRUPTED),
            _ => ExitCode::FAILURE,
        }
    }
}

/// The data directory that the flags and the environment name.
pub(super) fn data_dir(places: Places) -> Result<PathBuf, ExitCode> {
    config::data_dir(&sources(places, Overrides::default())).map(|(path, _)| path).map_err(
        |error| {
            eprintln!("{error}");
            ExitCode::from(USAGE)
        },
    )
}

/// Gives a command to the gateway that runs in a data directory and waits for the answer. `progress`
/// is called for each step of a command that takes a while.
///
/// # Errors
/// When none is running there, or it does not do it.
#[cfg(unix)]
pub(super) fn ask(
    data_dir: &Path,
    command: &Command,
    progress: impl FnMut(Value),
) -> Result<Value, Failure> {
    let broken = |why: String| Failure::Broken { path: data_dir.to_owned(), why };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| broken(error.to_string()))?;
    runtime.block_on(exchange(data_dir, command.clone(), progress))
}

/// There is no control socket on this system.
#[cfg(not(unix))]
pub(super) fn ask(
    data_dir: &Path,
    _command: &Command,
    _progress: impl FnMut(Value),
) -> Result<Value, Failure> {
    let why = "this version has no control socket on this system; GET /status, /topics and /peers \
               on admin.listen tell the same"
        .to_owned();
    Err(Failure::Broken { path: data_dir.to_owned(), why })
}

#[cfg(unix)]
pub(super) use exchange::exchange;

/// The same as [`ask`], on the caller's runtime.
#[cfg(not(unix))]
pub(super) async fn exchange(
    data_dir: &Path,
    command: Command,
    progress: impl FnMut(Value),
) -> Result<Value, Failure> {
    ask(data_dir, &command, progress)
}

/// Whether a gateway runs in the directory and can be asked.
#[cfg(unix)]
pub(super) async fn is_answering(data_dir: &Path) -> bool {
    crate::admin::socket::connect(data_dir).await.is_ok()
}

#[cfg(not(unix))]
pub(super) async fn is_answering(_: &Path) -> bool {
    false
}

/// Whether a gateway holds the directory, although its socket does not answer.
#[cfg(unix)]
fn is_held(data_dir: &Path) -> bool {
    let lock = File::options().write(true).open(data_dir.join("lock"));
    lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

#[cfg(unix)]
mod exchange {
    use std::{io, path::Path, time::Duration};

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};
    use hyper::{Request, StatusCode, body::Incoming, client::conn::http1, header};
    use hyper_util::rt::TokioIo;
    use serde_json::Value;

    use super::{Failure, is_held};
    use crate::admin::{
        api::{Command, Line, Refusal},
        http::LINES,
        socket,
    };

    /// How long a command may take.
    fn patience(command: &Command) -> Duration {
        Duration::from_secs(match command {
            Command::TopicSync { .. }
            | Command::Export { .. }
            | Command::Scan { .. }
            | Command::Delete { .. }
            | Command::Backup { .. }
            | Command::Sync { .. } => 3_600,
            // Plugins may take their time with each event.
            Command::Import { .. } => 600,
            _ => 120,
        })
    }

    /// The most that is taken of one line of an answer.
    const MAX_LINE: usize = 64 << 20;

    /// The body of the request and its type. What is imported follows the command as it is.
    fn body(mut command: Command) -> serde_json::Result<(Vec<u8>, &'static str)> {
        let events = match &mut command {
            Command::Import { events, .. } => Some(std::mem::take(&mut events.0)),
            _ => None,
        };
        let mut text = serde_json::to_vec(&command)?;
        let Some(events) = events else { return Ok((text, "application/json")) };
        text.reserve_exact(events.len() + 1);
        text.push(b'\n');
        text.extend_from_slice(events.as_bytes());
        Ok((text, LINES))
    }

    /// Gives a command to the gateway that runs in a data directory and waits for the answer.
    ///
    /// # Errors
    /// When none is running there, or it does not do it.
    pub(in crate::cli) async fn exchange(
        data_dir: &Path,
        command: Command,
        mut progress: impl FnMut(Value),
    ) -> Result<Value, Failure> {
        let path = || data_dir.to_owned();
        let broken = |why: String| Failure::Broken { path: path(), why };
        let stream = socket::connect(data_dir).await.map_err(|error| match error.kind() {
            // A gateway that was killed leaves its socket.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if is_held(data_dir) => {
                Failure::NotListening(path())
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Failure::NotRunning(path())
            }
            io::ErrorKind::PermissionDenied => {
                broken("only the user who runs it may do that".to_owned())
            }
            _ => broken(error.to_string()),
        })?;
        let patience = patience(&command);
        let (text, kind) = body(command).map_err(|error| broken(error.to_string()))?;
        let talk = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let request = Request::post("/control")
                .header(header::HOST, "localhost")
                .header(header::CONTENT_TYPE, kind)
                .header(header::CONNECTION, "close")
                .body(Full::new(Bytes::from(text)))
                .expect("the parts of the request are valid");
            let answer = async {
                let answer = sender.send_request(request).await?;
                let code = answer.status();
                let is_lines =
                    answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == LINES);
                Ok(read(code, is_lines, answer.into_body(), &mut progress).await)
            };
            tokio::pin!(answer, connection);
            // The connection makes the body progress and may end before the last of it was read.
            tokio::select! {
                answer = &mut answer => answer,
                _ = &mut connection => answer.await,
            }
        };
        let result: Result<_, hyper::Error> = match tokio::time::timeout(patience, talk).await {
            Ok(result) => result,
            Err(_) => return Err(broken("it does not answer".to_owned())),
        };
        match result {
            Ok(Ok(result)) => result.map_err(Failure::Refused),
            Ok(Err(why)) => Err(broken(why)),
            Err(error) => Err(broken(error.to_string())),
        }
    }

    /// What the answer says, or why it cannot be understood.
    async fn read(
        code: StatusCode,
        is_lines: bool,
        mut body: Incoming,
        progress: &mut impl FnMut(Value),
    ) -> Result<Result<Value, Refusal>, String> {
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
            text.extend_from_slice(&data);
            while is_lines && let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                match parse(&line)? {
                    Line::Progress(value) => progress(value),
                    Line::Done(value) => return Ok(Ok(value)),
                    Line::Refused(refusal) => return Ok(Err(refusal)),
                }
            }
            if text.len() > MAX_LINE {
                return Err("the answer is too long".to_owned());
            }
        }
        match (is_lines, code.is_success()) {
            (true, _) => Err("the answer ended too early".to_owned()),
            (false, true) => parse(&text).map(Ok),
            (false, false) => parse(&text).map(Err),
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, String> {
        serde_json::from_slice(text)
            .map_err(|error| format!("the answer is not understood: {error}"))
    }
}
