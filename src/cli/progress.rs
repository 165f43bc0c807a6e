//! Live progress on stderr: a bar for each disk on a terminal, elsewhere a plain line at each change of what is being
//! done, every 10 s, and when all of it is done.

use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar};

use super::output::{Output, ProgressStyle, bytes};

/// How often a plain line is written.
const EVERY: Duration = Duration::from_secs(10);

/// How far one thing (mostly a disk) is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: String,
    /// Bytes.
    pub(super) done: u64,
    /// Bytes; may still change.
    pub(super) total: u64,
}

/// Progress of one act.
pub(super) struct Progress {
    output: Output,
    style: ProgressStyle,
    bars: MultiProgress,
    shown: Vec<(String, ProgressBar)>,
    step: String,
    step_began: Instant,
    at_begin: u64,
    last_line: Instant,
    /// Whether the last line said that all is done.
    told_whole: bool,
}

impl Progress {
    pub(super) fn new(output: &Output) -> Self {
        let now = Instant::now();
        Self {
            output: output.clone(),
            style: output.progress_style(),
            bars: MultiProgress::new(),
            shown: Vec::new(),
            step: String::new(),
            step_began: now,
            at_begin: 0,
            last_line: now,
            told_whole: false,
        }
    }

    /// What is being done now, and how far. To be called as often as one likes.
    pub(super) fn show(&mut self, step: &str, items: &[Item]) {
        let changed = self.step != step;
        if changed {
            step.clone_into(&mut self.step);
            self.step_began = Instant::now();
            self.at_begin = items.iter().map(|item| item.done).sum();
        }
        match self.style {
            ProgressStyle::None => {}
            ProgressStyle::Bars => self.draw(items),
            ProgressStyle::Lines => {
                let whole = is_whole(items);
                self.told_whole &= whole;
                let newly = changed || whole && !self.told_whole;
                if newly || self.last_line.elapsed() >= EVERY {
                    (self.last_line, self.told_whole) = (Instant::now(), whole);
                    let line = line(step, items, self.at_begin, self.step_began.elapsed());
                    self.output.note(line);
                }
            }
        }
    }

    fn draw(&mut self, items: &[Item]) {
        for item in items {
            let at = self.shown.iter().position(|(name, _)| *name == item.name);
            let bar = match at {
                Some(at) => &self.shown[at].1,
                None => {
                    // Bars measure rate and time left by themselves.
                    let bar = self.bars.add(ProgressBar::new(item.total).with_style(bar_style()));
                    bar.set_prefix(item.name.clone());
                    self.shown.push((item.name.clone(), bar));
                    &self.shown[self.shown.len() - 1].1
                }
            };
            if bar.message() != self.step {
                bar.set_message(self.step.clone());
                bar.reset_eta();
            }
            bar.set_length(item.total);
            bar.set_position(item.done);
        }
        if items.is_empty() && self.shown.is_empty() {
            let bar = self.bars.add(ProgressBar::new_spinner());
            bar.set_message(self.step.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
            self.shown.push((String::new(), bar));
        } else if !items.is_empty()
            && let Some(at) = self.shown.iter().position(|(name, _)| name.is_empty())
        {
            self.bars.remove(&self.shown.remove(at).1);
        }
    }
}

impl Drop for Progress {
    /// The result comes next: the bars are taken away.
    fn drop(&mut self) {
        for (_, bar) in &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn bar_style() -> indicatif::ProgressStyle {
    const TEMPLATE: &str = "{prefix:16} {msg:10} [{bar:30}] {percent:>3}% {binary_bytes}/{binary_total_bytes} \
                            {binary_bytes_per_sec} {eta} left";
    indicatif::ProgressStyle::with_template(TEMPLATE)
        .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// `Copying: 40% of 2.00 GiB, 100.00 MiB/s, 12 seconds left (disk0 50%, disk1 30%)`
fn line(step: &str, items: &[Item], at_begin: u64, since: Duration) -> String {
    let (done, total) = items.iter().fold((0, 0), |sum, item| (sum.0 + item.done, sum.1 + item.total));
    if total == 0 {
        return step.to_owned();
    }
    let mut text = format!("{step}: {}% of {}", percent(done, total), bytes(total));
    let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let rate = u128::from(done.saturating_sub(at_begin)) * 1000 / u128::from(millis.max(1));
    let rate = u64::try_from(rate).unwrap_or(u64::MAX);
    if rate > 0 && millis >= 1000 {
        let left = Duration::from_secs(total.saturating_sub(done) / rate);
        text = format!("{text}, {}/s, {} left", bytes(rate), HumanDuration(left));
    }
    if items.len() > 1 {
        let each = items.iter().map(|item| format!("{} {}%", item.name, percent(item.done, item.total)));
        text = format!("{text} ({})", each.collect::<Vec<_>>().join(", "));
    }
    text
}

/// Whether there is something, and all of it is done.
fn is_whole(items: &[Item]) -> bool {
    items.iter().any(|item| item.total > 0) && items.iter().all(|item| item.done >= item.total)
}

fn percent(done: u64, total: u64) -> u128 {
    if total == 0 { 100 } else { u128::from(done.min(total)) * 100 / u128::from(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, done: u64, total: u64) -> Item {
        Item { name: name.into(), done, total }
    }

    #[test]
    fn a_line_tells_bytes_rate_time_left_and_each_disk() {
        let items = [item("disk0", 512 << 20, 1 << 30), item("disk1", 0, 1 << 30)];
        let text = line("Copying", &items, 0, Duration::from_secs(8));
        assert_eq!(text, "Copying: 25% of 2.00 GiB, 64.00 MiB/s, 24 seconds left (disk0 50%, disk1 0%)");
    }

    #[test]
    fn a_last_line_is_due_when_all_of_something_is_done() {
        assert!(is_whole(&[item("disk0", 9, 9), item("empty", 0, 0)]));
        for items in [vec![], vec![item("d", 0, 0)], vec![item("disk0", 9, 9), item("disk1", 8, 9)]] {
            assert!(!is_whole(&items), "{items:?}");
        }
    }

    #[test]
    fn a_line_without_a_measure_tells_the_step_alone() {
        assert_eq!(line("Waiting", &[], 0, Duration::from_secs(3)), "Waiting");
        assert_eq!(line("Copying", &[item("d", 0, 0)], 0, Duration::from_secs(3)), "Copying");
    }
}
