//! Notes of what happens in a history, for people. They are only made where they are asked for.

use std::cell::RefCell;
use std::rc::Rc;

/// A list of notes that many write to. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Notes(Option<Rc<RefCell<Vec<String>>>>);

impl Notes {
    /// Notes that are kept.
    pub(crate) fn kept() -> Self {
        Self(Some(Rc::default()))
    }

    pub(crate) fn add(&self, note: impl FnOnce() -> String) {
        if let Some(notes) = &self.0 {
            notes.borrow_mut().push(note());
        }
    }

    /// All notes so far, a line each.
    pub(crate) fn text(&self) -> String {
        self.0.as_ref().map(|notes| notes.borrow().join("\n")).unwrap_or_default()
    }
}
