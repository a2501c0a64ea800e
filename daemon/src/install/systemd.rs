//! systemd's own interface over D-Bus (org.freedesktop.systemd1(5)), as much of it as installing takes.
//!
//! Every change that systemd makes as a job is awaited, and a job that fails is an error.

use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use serde::Serialize;
use zbus::zvariant::DynamicType;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, Variant, message};

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// Replaces a job of the same unit that is under way, as systemctl does.
const MODE: &str = "replace";

/// systemd could not be reached, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no way to systemd.
    #[error("cannot reach systemd over D-Bus: {0}; run as root, with dbus installed")]
    Connect(#[source] zbus::Error),
    /// systemd said no.
    #[error("systemd refused {request}: {source}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// Its answer.
        source: zbus::Error,
    },
    /// A job ended badly.
    #[error("{unit} did not start: {result}; see: journalctl -u {unit} -n 30")]
    Job {
        /// The unit.
        unit: String,
        /// The job's result, such as `failed` or `timeout`.
        result: String,
    },
    /// A program of systemd is missing.
    #[error("this systemd lacks {0}")]
    NoProgram(&'static str),
}

/// A connection to systemd.
pub(super) struct Systemd {
    connection: Connection,
}

impl Systemd {
    pub(super) async fn connect() -> Result<Self, Error> {
        let connection = Connection::system().await.map_err(Error::Connect)?;
        let systemd = Self { connection };
        // Without this systemd sends no signals, and no job would ever be seen to end.
        systemd.call("Subscribe", &()).await?;
        Ok(systemd)
    }

    pub(super) async fn reload(&self) -> Result<(), Error> {
        self.call("Reload", &()).await.map(drop)
    }

    pub(super) async fn enable(&self, unit: &str) -> Result<(), Error> {
        let (for_this_boot_only, force) = (false, true);
        self.call("EnableUnitFiles", &(vec![unit], for_this_boot_only, force)).await?;
        self.reload().await
    }

    pub(super) async fn disable(&self, unit: &str) -> Result<(), Error> {
        let for_this_boot_only = false;
        self.call("DisableUnitFiles", &(vec![unit], for_this_boot_only)).await.map(drop)
    }

    /// Starts a unit, or restarts it so that it runs the binary and the settings that are there now.
    pub(super) async fn restart(&self, unit: &str) -> Result<(), Error> {
        self.job("RestartUnit", unit, &(unit, MODE)).await
    }

    /// Stops a unit; one that systemd does not know is stopped already.
    pub(super) async fn stop(&self, unit: &str) -> Result<(), Error> {
        match self.job("StopUnit", unit, &(unit, MODE)).await {
            Err(Error::Refused { source: zbus::Error::MethodError(name, ..), .. })
                if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit" =>
            {
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Runs one of systemd's set-up programs on one configuration file, as a transient unit.
    pub(super) async fn run(&self, purpose: &str, program: &'static str, file: &Path) -> Result<(), Error> {
        let path = find(program)?;
        let create = program == "systemd-tmpfiles";
        let mut arguments = vec![program.to_owned()];
        arguments.extend(create.then(|| "--create".to_owned()));
        arguments.push(file.display().to_string());
        let ignore_failure = false;
        let unit = format!("wgmesh-setup-{purpose}.service");
        let properties: Vec<(&str, Variant<'_>)> = vec![
            ("Description", Variant::from("Set up the wgmesh service")),
            ("Type", Variant::from("oneshot")),
            // One that failed would stand in the way of the next attempt.
            ("CollectMode", Variant::from("inactive-or-failed")),
            ("ExecStart", Variant::from(vec![(path.display().to_string(), arguments, ignore_failure)])),
        ];
        let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        self.job("StartTransientUnit", &unit, &(unit.as_str(), MODE, properties, auxiliary)).await
    }

    /// Makes a call that starts a job and waits for the job's end.
    async fn job<B>(&self, request: &'static str, unit: &str, body: &B) -> Result<(), Error>
    where
        B: Serialize + DynamicType,
    {
        let refused = |source| Error::Refused { request, source };
        let rule = MatchRule::builder()
            .msg_type(message::Type::Signal)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()
            .map_err(refused)?;
        // Listen first: the job may be over before the answer to the call is read.
        let mut removed =
            MessageStream::for_match_rule(rule, &self.connection, None).await.map_err(refused)?;
        let answer = self.call(request, body).await?;
        let job: OwnedObjectPath = answer.body().deserialize().map_err(refused)?;
        while let Some(signal) = removed.next().await {
            let signal = signal.map_err(refused)?;
            let (_, path, _, result): (u32, OwnedObjectPath, String, String) =
                signal.body().deserialize().map_err(refused)?;
            if path == job {
                let unit = unit.to_owned();
                return if result == "done" { Ok(()) } else { Err(Error::Job { unit, result }) };
            }
        }
        Err(Error::Job { unit: unit.to_owned(), result: "systemd hung up".to_owned() })
    }

    async fn call<B>(&self, request: &'static str, body: &B) -> Result<zbus::Message, Error>
    where
        B: Serialize + DynamicType,
    {
        self.connection
            .call_method(Some(SERVICE), MANAGER_PATH, Some(MANAGER), request, body)
            .await
            .map_err(|source| Error::Refused { request, source })
    }
}

/// Finds a program where distributions with and without a merged /usr keep it.
fn find(program: &'static str) -> Result<PathBuf, Error> {
    ["/usr/bin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.exists())
        .ok_or(Error::NoProgram(program))
}
