//! What is drawn while a guest is watched.

use std::time::Duration;

use dunlin_core::units::PAGE_SIZE;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph, Sparkline};

use crate::report::chart::number;
use crate::report::{ShadeMap, TraceReport, bytes, count, duration, rate};

/// How long it goes on, and what it costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// How long it is to go on, in microseconds.
    pub(super) whole_us: u64,
    /// CPU time of this process, in thousandths of a processor.
    pub(super) cpu_milli: u64,
}

const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().fg(Color::DarkGray);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
/// Lines of the head, of the rate, of the hottest pages with their frames.
const HEAD: u16 = 3;
const RATE: u16 = 8;
const HOT: u16 = 8;
/// Characters of a vCPU's bar.
const BAR: usize = 24;

/// All of it.
pub(super) fn draw(frame: &mut Frame<'_>, report: &TraceReport, plan: Plan) {
    let rows = [Constraint::Length(HEAD), Constraint::Min(0), Constraint::Length(1)];
    let [head, body, foot] = Layout::vertical(rows).areas(frame.area());
    let halves = [Constraint::Percentage(50), Constraint::Percentage(50)];
    let [left, right] = Layout::horizontal(halves).areas(body);
    let vcpus = u16::try_from(report.vcpus.len()).unwrap_or(u16::MAX).clamp(1, 6) + 2;
    let [rates, sets, shares] =
        Layout::vertical([Constraint::Length(RATE), Constraint::Min(8), Constraint::Length(vcpus)]).areas(left);
    let [heat, hot] = Layout::vertical([Constraint::Min(8), Constraint::Length(HOT)]).areas(right);
    frame.render_widget(title(report, plan), head);
    dirty_rate(frame, rates, report);
    working_sets(frame, sets, report);
    frame.render_widget(Paragraph::new(vcpu_lines(report)).block(framed("vCPUs")), shares);
    heat_map(frame, heat, report);
    frame.render_widget(Paragraph::new(hot_lines(report)).block(framed("hottest pages")), hot);
    frame.render_widget(
        Line::styled("q or Ctrl-C ends the recording and shows the report", FAINT),
        foot,
    );
}

fn framed(title: &str) -> Block<'_> {
    Block::bordered()
        .border_style(FAINT)
        .title(Span::styled(format!(" {title} "), TITLE))
}

fn title<'a>(report: &TraceReport, plan: Plan) -> Paragraph<'a> {
    let guest = &report.guest;
    let lost = match report.lost_events {
        Some(0) => Span::raw("0 lost"),
        Some(lost) => Span::styled(format!("{} lost", count(lost)), BAD),
        None => Span::styled("some lost", BAD),
    };
    let harvest = report.harvest.map_or_else(String::new, |harvest| {
        format!(" · harvested every {}", micros(harvest.mean_us))
    });
    Paragraph::new(vec![
        Line::from(vec![
            Span::styled(guest.name.clone(), TITLE),
            Span::raw(format!(
                "  {}, {} vCPUs, by {}{harvest}",
                bytes(guest.memory_bytes),
                guest.vcpus,
                report.source
            )),
        ]),
        Line::from(vec![
            Span::raw(format!(
                "{} of {} · {} events · ",
                micros(report.duration_us),
                micros(plan.whole_us),
                count(report.events)
            )),
            lost,
            Span::raw(format!(
                " · this process takes {}.{} % of a CPU",
                plan.cpu_milli / 10,
                plan.cpu_milli % 10
            )),
        ]),
        Line::styled(format!("cannot see: {}", report.cannot_see), FAINT),
    ])
}

fn dirty_rate(frame: &mut Frame<'_>, area: Rect, report: &TraceReport) {
    let Some(rates) = &report.rate else {
        frame.render_widget(framed("dirty rate"), area);
        return;
    };
    let windows = &rates.windows;
    let title = format!(
        "dirty rate: {} pages/s ({}), windows of {}",
        number(windows.mean_pages_per_s),
        rate(windows.mean_bytes_per_s as u64),
        micros(windows.window_us as u64)
    );
    // The latest that fit.
    let fit = usize::from(area.width.saturating_sub(2)).min(rates.series.len());
    let shown = &rates.series[rates.series.len() - fit..];
    let values: Vec<u64> = shown.iter().map(|point| point.pages_per_s as u64).collect();
    let line = Sparkline::default()
        .data(&values)
        .style(Style::new().fg(Color::Cyan))
        .block(framed(&title));
    frame.render_widget(line, area);
}

/// Both axes by factors.
fn working_sets(frame: &mut Frame<'_>, area: Rect, report: &TraceReport) {
    let log = |value: u64| (value.max(1) as f64).log10();
    let low: Vec<(f64, f64)> = report
        .wws
        .iter()
        .map(|point| (log(point.window_us), log(point.pages)))
        .collect();
    let high: Vec<(f64, f64)> = report
        .wws
        .iter()
        .map(|point| (log(point.window_us), log(point.pages_high)))
        .collect();
    let title = format!(
        "working set by window: {} in all",
        bytes(report.guest.written_pages * PAGE_SIZE)
    );
    let (Some(first), Some(last)) = (report.wws.first(), report.wws.last()) else {
        frame.render_widget(framed(&title), area);
        return;
    };
    let bounds = |from: u64, to: u64| [log(from), log(to).max(log(from) + 0.1)];
    let top = last.pages_high.max(1);
    let line = |points, colour| {
        let style = Style::new().fg(colour);
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(style)
            .data(points)
    };
    let chart = Chart::new(vec![line(&high, Color::DarkGray), line(&low, Color::Green)])
        .block(framed(&title))
        .x_axis(
            Axis::default()
                .style(FAINT)
                .bounds(bounds(first.window_us, last.window_us))
                .labels([micros(first.window_us), micros(last.window_us)]),
        )
        .y_axis(
            Axis::default()
                .style(FAINT)
                .bounds(bounds(first.pages.max(1), top))
                .labels([count(first.pages), format!("{} pages", count(top))]),
        );
    frame.render_widget(chart, area);
}

fn heat_map(frame: &mut Frame<'_>, area: Rect, report: &TraceReport) {
    const ADDRESS: usize = 12;
    let block = framed("where and when it writes");
    let Some(heat) = &report.heat else {
        frame.render_widget(block, area);
        return;
    };
    let (width, height) = (
        usize::from(area.width.saturating_sub(2)),
        usize::from(area.height.saturating_sub(2)),
    );
    let map = ShadeMap::of(
        &heat.evened(report.duration_us),
        width.saturating_sub(ADDRESS + 1),
        height.saturating_sub(2),
    );
    let lines = map.lines.iter().map(|(address, line)| {
        Line::from(vec![
            Span::styled(format!("{address:>ADDRESS$x} "), FAINT),
            Span::styled(line.clone(), Style::new().fg(Color::Yellow)),
        ])
    });
    let legend = [
        Line::styled(
            format!(
                "{} a column, {} a line; per second and page:",
                micros(map.column_us),
                bytes(map.line_pages * PAGE_SIZE)
            ),
            FAINT,
        ),
        Line::styled(map.legend(), FAINT),
    ];
    let lines: Vec<Line<'_>> = lines.chain(legend).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn vcpu_lines<'a>(report: &TraceReport) -> Vec<Line<'a>> {
    if report.vcpus.is_empty() {
        return vec![Line::styled("this source does not tell who writes", FAINT)];
    }
    let lines = report.vcpus.iter().map(|share| {
        let filled = (share.share_milli as usize * BAR).div_ceil(1000).min(BAR);
        Line::from(vec![
            Span::raw(format!("{:>4} ", share.vcpu)),
            Span::styled("█".repeat(filled), Style::new().fg(Color::Blue)),
            Span::raw(format!(
                "{} {}.{} %",
                " ".repeat(BAR - filled),
                share.share_milli / 10,
                share.share_milli % 10
            )),
        ])
    });
    lines.collect()
}

fn hot_lines<'a>(report: &TraceReport) -> Vec<Line<'a>> {
    let all = report.events.max(1);
    let pages = report.hot.pages.iter().map(|page| {
        let milli = u128::from(page.events) * 1000 / u128::from(all);
        Line::raw(format!(
            "{:>14} {:>12} events {:>3}.{} %",
            format!("{:#x}", page.address),
            count(page.events),
            milli / 10,
            milli % 10
        ))
    });
    pages.collect()
}

fn micros(micros: u64) -> String {
    duration(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::tests::{head, reported, writes};
    use dunlin_core::tracefile::Source;
    use dunlin_core::units::Nanos;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn drawn(report: &TraceReport, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let plan = Plan {
            whole_us: 10_000_000,
            cpu_milli: 13,
        };
        terminal.draw(|frame| draw(frame, report, plan)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_has_its_place() {
        let items = writes("hotset:0.1", 8192, 2, 100_000, Nanos::from_micros(50));
        let text = drawn(&reported(&head(Source::Generator, 8192, 2), &items), 110, 40);
        for part in [
            "generated",
            "32.0 MiB",
            "5.00 s of 10.0 s",
            "200,000 events",
            "0 lost",
            "1.3 % of a CPU",
            "dirty rate:",
            "working set by window",
            "where and when it writes",
            "vCPUs",
            "50.0 %",
            "hottest pages",
            "q or Ctrl-C",
            "█",
            "per second and page",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn nothing_yet_and_no_room_are_drawn_too() {
        let empty = reported(&head(Source::Bitmap, 8192, 2), &[]);
        assert!(drawn(&empty, 110, 40).contains("does not tell who writes"));
        for (width, height) in [(1, 1), (20, 5), (40, 12), (300, 100)] {
            drawn(&empty, width, height);
            let items = writes("seq", 8192, 2, 100, Nanos::from_micros(50));
            drawn(&reported(&head(Source::Generator, 8192, 2), &items), width, height);
        }
    }
}
