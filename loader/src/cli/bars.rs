//! Progress bars: on a terminal only, and taken off it whatever ends the command, so that nothing is printed behind
//! one.

use std::fmt::Write;
use std::io::IsTerminal;
use std::ops::Deref;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// A bar that is cleared when it is dropped.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// A bar of `len` things, or a spinner. The template may use `{rate}`: things per second, rounded.
    pub fn new(len: Option<u64>, template: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        Self::hidden(len, template).shown()
    }

    /// One that is not drawn before [`shown`](Self::shown), but counts.
    pub fn hidden(len: Option<u64>, template: &str) -> Self {
        let rate = |state: &ProgressState, out: &mut dyn Write| {
            let _ = write!(out, "{}/s", rounded(state.per_sec()));
        };
        let style = ProgressStyle::with_template(template).expect("a valid template").with_key("rate", rate);
        Self(ProgressBar::with_draw_target(len, ProgressDrawTarget::hidden()).with_style(style))
    }

    /// Draws it from now on.
    pub fn shown(self) -> Self {
        self.0.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        self
    }
}

impl Deref for Bar {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.0
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// "1,163", "97.5", "0.25": three digits are enough to see how fast something is.
pub(super) fn rounded(number: f64) -> String {
    match number {
        small if small < 10.0 => format!("{small:.2}"),
        small if small < 100.0 => format!("{small:.1}"),
        large => grouped(large.round() as u64),
    }
}

/// "1,234,567".
pub(super) fn grouped(number: u64) -> String {
    indicatif::HumanCount(number).to_string()
}

/// "1 record", "2,000 records".
pub(super) fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        for (number, text) in
            [(0.0, "0.00"), (9.876, "9.88"), (12.34, "12.3"), (1163.2922, "1,163"), (270_694.0, "270,694")]
        {
            assert_eq!(rounded(number), text);
        }
        assert_eq!(counted(1, "step"), "1 step");
        assert_eq!(counted(12_345, "step"), "12,345 steps");
    }
}
