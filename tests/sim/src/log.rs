//! What the nodes log: kept to be shown when a run fails. An ERROR fails the run: it is for what needs a human, and
//! nothing in a simulated world does, unless the run is about just that.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

/// So many of the latest lines are kept.
const KEPT_LINES: usize = 30;

/// The log of one world.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    place: String,
    latest: VecDeque<String>,
    error: Option<String>,
    expected: Option<&'static str>,
}

impl Log {
    /// Makes a handle for [`tracing::dispatcher::with_default`].
    pub fn dispatch(&self) -> Dispatch {
        Dispatch::new(self.clone())
    }

    /// Names who logs next, and when.
    pub fn set_place(&self, place: String) {
        self.lines().place = place;
    }

    /// Returns the first ERROR that was logged.
    pub fn error(&self) -> Option<String> {
        self.lines().error.clone()
    }

    /// Takes an ERROR of these words for what is to be.
    pub fn expect(&self, words: &'static str) {
        self.lines().expected = Some(words);
    }

    /// Returns the latest lines.
    pub fn latest(&self) -> Vec<String> {
        self.lines().latest.iter().cloned().collect()
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let level = *event.metadata().level();
        let mut lines = self.lines();
        let line = format!("{} {level}{}", lines.place, text.0);
        if level == Level::ERROR && !lines.expected.is_some_and(|words| line.contains(words)) {
            lines.error.get_or_insert_with(|| line.clone());
        }
        lines.latest.push_back(line);
        if lines.latest.len() > KEPT_LINES {
            lines.latest.pop_front();
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let written = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
        written.expect("writing into memory cannot fail");
    }
}
