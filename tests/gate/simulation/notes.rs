//! Notes of what happens in a history: counts of events, and lines for people, which are only made where they are asked
//! for.

use std::cell::RefCell;
use std::rc::Rc;

use super::events::{Event, Events};

/// Notes that many write to. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Notes {
    events: Rc<RefCell<Events>>,
    lines: Option<Rc<RefCell<Vec<String>>>>,
}

impl Notes {
    /// Notes with lines.
    pub(crate) fn with_lines() -> Self {
        Self { lines: Some(Rc::default()), ..Self::default() }
    }

    pub(crate) fn add(&self, note: impl FnOnce() -> String) {
        if let Some(lines) = &self.lines {
            lines.borrow_mut().push(note());
        }
    }

    pub(crate) fn count(&self, event: Event) {
        self.events.borrow_mut().count(event);
    }

    /// What has happened so far.
    pub(crate) fn events(&self) -> Events {
        *self.events.borrow()
    }

    /// All lines so far.
    pub(crate) fn text(&self) -> String {
        self.lines.as_ref().map(|lines| lines.borrow().join("\n")).unwrap_or_default()
    }
}
