//! The terminal while it is drawn on, and its keys.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::view::{self, Plan};
use crate::channel::Cancel;
use crate::report::TraceReport;

/// How often keys are asked for.
const KEYS_EVERY: Duration = Duration::from_millis(100);

/// A terminal that is drawn on until this is dropped; as it was, then.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    over: Arc<AtomicBool>,
    keys: Option<JoinHandle<()>>,
}

impl Screen {
    /// Takes the terminal. `q` and Ctrl-C raise `interrupt`, as a signal would: in this mode of a terminal there is none.
    pub(super) fn open(interrupt: &Cancel) -> io::Result<Self> {
        let terminal = ratatui::try_init()?;
        let over = Arc::new(AtomicBool::new(false));
        let (watched, interrupt) = (Arc::clone(&over), interrupt.clone());
        let keys = thread::spawn(move || {
            while !watched.load(Ordering::Relaxed) {
                match event::poll(KEYS_EVERY) {
                    Ok(true) => {}
                    Ok(false) => continue,
                    // A terminal that is gone has no keys.
                    Err(_) => return,
                }
                if matches!(event::read(), Ok(Event::Key(key)) if ends(key)) {
                    interrupt.raise();
                }
            }
        });
        Ok(Self {
            terminal,
            over,
            keys: Some(keys),
        })
    }

    /// Draws what is known.
    pub(super) fn draw(&mut self, report: &TraceReport, plan: Plan) -> io::Result<()> {
        self.terminal.draw(|frame| view::draw(frame, report, plan)).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(keys) = self.keys.take() {
            // Of a thread that panicked nothing is wanted.
            let _ = keys.join();
        }
        ratatui::restore();
    }
}

/// Whether a key ends the recording.
fn ends(key: KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) || control && key.code == KeyCode::Char('c'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_an_interrupt_end_it() {
        let key = |code, modifiers| ends(KeyEvent::new(code, modifiers));
        assert!(key(KeyCode::Char('q'), KeyModifiers::NONE) && key(KeyCode::Esc, KeyModifiers::NONE));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!key(KeyCode::Char('c'), KeyModifiers::NONE) && !key(KeyCode::Enter, KeyModifiers::NONE));
    }
}
