//! Prometheus's text format, version 0.0.4: families of samples. Pure.

use std::fmt::Write;

use millrace_engine::timing::{BUCKET_BOUNDS_US, Durations};

/// Kind of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
    Summary,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
        }
    }
}

/// A label's name and value.
pub(crate) type Label<'a> = (&'a str, &'a str);

/// A page that is being written. Begin a family with [`Page::family`], then give its samples.
#[derive(Default)]
pub(crate) struct Page {
    text: String,
    family: String,
}

impl Page {
    /// Begins a family. `name` is a legal name and was not used before.
    pub(crate) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.family.clear();
        self.family.push_str(name);
        self.text.push_str("# HELP ");
        self.text.push_str(name);
        self.text.push(' ');
        escape(&mut self.text, help, false);
        writeln!(self.text, "\n# TYPE {name} {}", kind.name()).expect("a string takes any text");
    }

    /// A sample of the family.
    pub(crate) fn sample(&mut self, labels: &[Label<'_>], value: f64) {
        self.suffixed("", labels, &[], value);
    }

    /// A sample of a part of the family (`_sum`, `_count`, `_bucket`), with labels of that part.
    pub(crate) fn suffixed(&mut self, suffix: &str, labels: &[Label<'_>], more: &[Label<'_>], value: f64) {
        let labels = render_labels(labels.iter().chain(more).copied());
        self.rendered(suffix, &labels, value);
    }

    /// A sample of a part of the family, with labels by [`render_labels`].
    pub(crate) fn rendered(&mut self, suffix: &str, labels: &str, value: f64) {
        self.text.push_str(&self.family);
        self.text.push_str(suffix);
        self.text.push_str(labels);
        self.text.push(' ');
        push_value(&mut self.text, value);
        self.text.push('\n');
    }

    /// All samples of a histogram of durations.
    pub(crate) fn durations(&mut self, labels: &[Label<'_>], durations: &Durations) {
        let mut up_to = 0;
        for (bound, count) in BUCKET_BOUNDS_US.iter().zip(durations.buckets) {
            up_to += count;
            self.suffixed("_bucket", labels, &[("le", &seconds(*bound).to_string())], up_to as f64);
        }
        self.suffixed("_bucket", labels, &[("le", "+Inf")], durations.count as f64);
        self.suffixed("_sum", labels, &[], seconds(durations.sum_us));
        self.suffixed("_count", labels, &[], durations.count as f64);
    }

    /// The page.
    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// Labels as a sample has them, in braces; nothing for none.
pub(crate) fn render_labels<'a>(labels: impl Iterator<Item = Label<'a>>) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push_str(name);
        text.push_str("=\"");
        escape(&mut text, value, true);
        text.push('"');
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}

/// Seconds of microseconds.
pub(crate) fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn push_value(text: &mut String, value: f64) {
    match value {
        value if value.is_nan() => text.push_str("NaN"),
        f64::INFINITY => text.push_str("+Inf"),
        f64::NEG_INFINITY => text.push_str("-Inf"),
        value => write!(text, "{value}").expect("a string takes any text"),
    }
}

fn escape(text: &mut String, value: &str, is_label: bool) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if is_label => text.push_str("\\\""),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millrace_engine::timing::Timings;

    use super::*;

    #[test]
    fn samples_are_written_as_the_format_wants_them() {
        let mut page = Page::default();
        page.family("a_total", Kind::Counter, "All \"a\"\nof them\\");
        page.sample(&[], 3.0);
        page.sample(&[("x", "a\"b\\c\nd"), ("y", "")], 0.5);
        page.sample(&[], f64::NAN);
        page.sample(&[], f64::NEG_INFINITY);
        let expected = "# HELP a_total All \"a\"\\nof them\\\\\n# TYPE a_total counter\na_total 3\n\
            a_total{x=\"a\\\"b\\\\c\\nd\",y=\"\"} 0.5\na_total NaN\na_total -Inf\n";
        assert_eq!(page.finish(), expected);
    }

    #[test]
    fn buckets_add_up_and_are_in_seconds() {
        let mut timings = Timings::default();
        for us in [40, 60, 2_000_000, 90_000_000] {
            timings.record(0, Duration::from_micros(us));
        }
        let mut page = Page::default();
        page.family("d_seconds", Kind::Histogram, "Durations.");
        page.durations(&[("api", "x")], &timings.read(0));
        let text = page.finish();
        for line in [
            "d_seconds_bucket{api=\"x\",le=\"0.00005\"} 1\n",
            "d_seconds_bucket{api=\"x\",le=\"0.0001\"} 2\n",
            "d_seconds_bucket{api=\"x\",le=\"1\"} 2\n",
            "d_seconds_bucket{api=\"x\",le=\"2.5\"} 3\n",
            "d_seconds_bucket{api=\"x\",le=\"30\"} 3\n",
            "d_seconds_bucket{api=\"x\",le=\"+Inf\"} 4\n",
            "d_seconds_sum{api=\"x\"} 92.0001\n",
            "d_seconds_count{api=\"x\"} 4\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
