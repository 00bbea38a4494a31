//! Where things are on a chart, and everything on it but the data.

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::{
    Color as _, DrawingArea, DrawingAreaErrorKind, FontFamily, FontStyle, FontTransform, IntoFont as _, PathElement,
    Polygon, RGBColor, Rectangle, SVGBackend, ShapeStyle, Text, TextStyle,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::marks;
use super::scale::Scale;
use super::{Chart, Kind, WIDTH};

pub(super) type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// [`super::INK`], [`super::MUTED`], [`super::GRID`], [`super::BACKGROUND`].
pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const MUTED: RGBColor = RGBColor(0x55, 0x55, 0x55);
const GRID: RGBColor = RGBColor(0xE4, 0xE4, 0xE4);
pub(super) const BACKGROUND: RGBColor = RGBColor(0xFF, 0xFF, 0xFF);

pub(super) const TITLE_PIXELS: i32 = 17;
pub(super) const TEXT_PIXELS: i32 = 13;
pub(super) const LINE: i32 = 17;
pub(super) const MARGIN: i32 = 14;
const PLOT_HEIGHT: i32 = 270;
/// Of the sign before a name in the legend, and between two of them.
const SIGN: i32 = 24;
const BETWEEN: i32 = 20;
/// At both ends of an axis of numbers, as a share of it.
const FREE: f64 = 0.04;
/// More different numbers than that are not each written at the axis.
const NUMBERS_MAX: usize = 12;

/// What a chart is drawn on: pixels, and how far down it begins.
pub(super) struct Canvas<'a, 'b> {
    pub(super) area: &'a DrawingArea<SVGBackend<'b>, Shift>,
    pub(super) top: i32,
}

/// Where things are, in pixels from the chart's own top left corner.
pub(super) struct Layout {
    pub(super) height: i32,
    title: Vec<String>,
    legend: Vec<(Sign, String, i32, i32)>,
    pub(super) left: i32,
    pub(super) right: i32,
    pub(super) top: i32,
    pub(super) bottom: i32,
    pub(super) y: Scale,
    pub(super) x: Scale,
    /// Where, and the lines of the text.
    x_ticks: Vec<(i32, Vec<String>)>,
}

/// What stands before a name in the legend.
#[derive(Clone, Copy)]
enum Sign {
    Series(usize),
    Published,
    Interval,
}

impl Layout {
    pub(super) fn of(chart: &Chart) -> Self {
        let right = WIDTH as i32 - MARGIN;
        let title = wrapped(&chart.title, TITLE_PIXELS, right - MARGIN);
        let mut below = MARGIN + LINE * title.len() as i32 + 10;
        let legend = legend(chart, right, &mut below);
        let top = below + 8;
        let bottom = top + PLOT_HEIGHT;
        let values = values(chart);
        // Above the highest bar stands its number.
        let room = if marks::has_numbers(chart) { 16 } else { 4 };
        let y = Scale::over(&values, chart.y.log, chart.kind != Kind::Lines, [bottom, top + room]);
        let widest = y.ticks().iter().map(|(_, text)| width(text, TEXT_PIXELS)).max();
        let left = MARGIN + LINE + 6 + widest.unwrap_or(0) + 8;
        let (x, x_ticks) = horizontal(chart, left, right);
        let lines = x_ticks.iter().map(|(_, lines)| lines.len()).max().unwrap_or(0) as i32;
        Self {
            height: bottom + 10 + LINE * lines + LINE + MARGIN + 4,
            title,
            legend,
            left,
            right,
            top,
            bottom,
            y,
            x,
            x_ticks,
        }
    }
}

/// Everything that has to lie between the ends of the vertical axis.
fn values(chart: &Chart) -> Vec<f64> {
    let of_points = chart.series.iter().flat_map(|series| {
        let drawable = series.points.iter().filter(|point| point.is_drawable());
        drawable.flat_map(|point| {
            let [low, high] = point.whiskers().unwrap_or([point.y; 2]);
            [low, point.y, high]
        })
    });
    let published = chart.series.iter().flat_map(|series| &series.published);
    of_points
        .chain(published.map(|point| point[1]))
        .filter(|value| value.is_finite())
        .collect()
}

fn legend(chart: &Chart, right: i32, below: &mut i32) -> Vec<(Sign, String, i32, i32)> {
    let named = chart.series.len() > 1 || chart.has_published();
    let series = chart.series.iter().enumerate().filter(|_| named);
    let mut entries: Vec<(Sign, String)> = series
        .map(|(index, series)| (Sign::Series(index), series.name.clone()))
        .collect();
    if chart.has_published() {
        entries.push((Sign::Published, "published".into()));
    }
    if chart.has_intervals() {
        let name = if chart.interval.is_empty() {
            "95 % interval"
        } else {
            &chart.interval
        };
        entries.push((Sign::Interval, name.into()));
    }
    let mut across = MARGIN;
    let mut placed = Vec::new();
    for (sign, name) in entries {
        let name = wrapped(&name, TEXT_PIXELS, right - MARGIN - SIGN).swap_remove(0);
        let taken = SIGN + width(&name, TEXT_PIXELS);
        if across + taken > right && across > MARGIN {
            across = MARGIN;
            *below += LINE + 3;
        }
        placed.push((sign, name, across, *below + LINE / 2));
        across += taken + BETWEEN;
    }
    if !placed.is_empty() {
        *below += LINE + 3;
    }
    placed
}

/// The horizontal axis: words in bands of the same width, or numbers.
fn horizontal(chart: &Chart, left: i32, right: i32) -> (Scale, Vec<(i32, Vec<String>)>) {
    let words = &chart.x.categories;
    if !words.is_empty() {
        let ends = [-0.5, words.len() as f64 - 0.5];
        let scale = Scale::around(&ends, false, 0.0, [left, right]);
        let band = (right - left) / words.len() as i32;
        let ticks = words.iter().enumerate().map(|(index, word)| {
            let lines = wrapped(word, TEXT_PIXELS, band - 6);
            (scale.at(index as f64), lines)
        });
        let ticks = ticks.collect();
        return (scale, ticks);
    }
    let points = chart.series.iter().flat_map(|series| {
        let published = series.published.iter().map(|point| point[0]);
        series.points.iter().map(|point| point.x).chain(published)
    });
    let mut values: Vec<f64> = points.filter(|x| x.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    let scale = match chart.kind {
        Kind::Steps => Scale::around(&values, chart.x.log, 0.0, [left, right]),
        _ => Scale::around(&values, chart.x.log, FREE, [left, right]),
    };
    let ticks = match values.len() {
        1..=NUMBERS_MAX => values.iter().map(|&value| (value, super::exact(value))).collect(),
        _ => scale.ticks(),
    };
    let mut free_from = i32::MIN;
    let mut placed = Vec::new();
    for (value, text) in ticks {
        let (at, half) = (scale.at(value), width(&text, TEXT_PIXELS) / 2);
        // Where there is no room the tick stands alone.
        let lines = if at - half >= free_from {
            free_from = at + half + 6;
            vec![text]
        } else {
            vec![]
        };
        placed.push((at, lines));
    }
    (scale, placed)
}

pub(super) fn draw(canvas: &Canvas<'_, '_>, chart: &Chart, layout: &Layout) -> Drawn {
    canvas.rectangle([0, 0], [WIDTH as i32, layout.height], BACKGROUND)?;
    for (index, line) in (0..).zip(&layout.title) {
        canvas.write(
            line,
            [MARGIN, MARGIN + index * (LINE + 2)],
            style(TITLE_PIXELS, HPos::Left, VPos::Top, true),
        )?;
    }
    let Layout {
        left,
        right,
        top,
        bottom,
        ..
    } = *layout;
    for (value, text) in layout.y.ticks() {
        let y = layout.y.at(value);
        canvas.line(&[[left, y], [right, y]], GRID, 1)?;
        canvas.write(
            &text,
            [left - 8, y],
            style(TEXT_PIXELS, HPos::Right, VPos::Center, false),
        )?;
    }
    for (x, lines) in &layout.x_ticks {
        canvas.line(&[[*x, bottom], [*x, bottom + 4]], INK, 1)?;
        for (index, line) in (0..).zip(lines) {
            let at = [*x, bottom + 10 + index * LINE];
            canvas.write(line, at, style(TEXT_PIXELS, HPos::Center, VPos::Top, false))?;
        }
    }
    marks::draw(canvas, chart, layout)?;
    canvas.line(&[[left, top], [left, bottom], [right, bottom]], INK, 1)?;
    let middle = [(left + right) / 2, layout.height - MARGIN];
    canvas.write(
        &chart.x.label(),
        middle,
        style(TEXT_PIXELS, HPos::Center, VPos::Bottom, true),
    )?;
    let upright = style(TEXT_PIXELS, HPos::Center, VPos::Top, true).transform(FontTransform::Rotate270);
    canvas.write(&chart.y.label(), [MARGIN - 6, (top + bottom) / 2], upright)?;
    for (sign, name, x, y) in &layout.legend {
        let at = [x + SIGN / 2 - 4, *y];
        match *sign {
            Sign::Series(index) => marks::sign(canvas, chart.kind, index, at)?,
            Sign::Published => marks::diamond(canvas, at)?,
            Sign::Interval => marks::whisker(canvas, at[0], [y - 7, y + 7])?,
        }
        canvas.write(
            name,
            [x + SIGN, *y],
            style(TEXT_PIXELS, HPos::Left, VPos::Center, false),
        )?;
    }
    Ok(())
}

pub(super) fn style(pixels: i32, across: HPos, along: VPos, strong: bool) -> TextStyle<'static> {
    // The SVG gets what is asked for over that.
    const ASKED: f64 = 1.24;
    let weight = if strong { FontStyle::Bold } else { FontStyle::Normal };
    let colour: &'static RGBColor = if strong { &INK } else { &MUTED };
    let font = (FontFamily::SansSerif, f64::from(pixels) * ASKED, weight).into_font();
    TextStyle::from(font).color(colour).pos(Pos::new(across, along))
}

/// What a text takes of a line, on the safe side: about as in the fonts that most machines have.
pub(super) fn width(text: &str, pixels: i32) -> i32 {
    let of_one = |character: char| match character {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' => 30,
        ' ' | 'f' | 'r' | 't' | '(' | ')' | '[' | ']' | '-' | '/' => 36,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '—' => 92,
        'A'..='Z' | '+' | '=' | '<' | '>' | '−' => 72,
        _ => 58,
    };
    let hundredths: i32 = text.chars().map(of_one).sum();
    (hundredths * pixels + 99) / 100
}

/// Lines of at most so many pixels, where possible between words.
pub(super) fn wrapped(text: &str, pixels: i32, most: i32) -> Vec<String> {
    let fits = |line: &str, more: &str| width(line, pixels) + width(more.trim_end(), pixels) <= most;
    let mut lines = Vec::new();
    let mut line = String::new();
    for part in text.split_inclusive([' ', ',', '+', '*', '(']) {
        if !line.is_empty() && !fits(&line, part) {
            lines.push(std::mem::take(&mut line));
        }
        for character in part.chars() {
            if !line.is_empty() && !fits(&line, character.encode_utf8(&mut [0; 4])) {
                lines.push(std::mem::take(&mut line));
            }
            line.push(character);
        }
    }
    lines.push(line);
    lines.iter().map(|line| line.trim().to_owned()).collect()
}

impl Canvas<'_, '_> {
    fn at(&self, [x, y]: [i32; 2]) -> (i32, i32) {
        (x, y + self.top)
    }

    pub(super) fn line(&self, points: &[[i32; 2]], colour: RGBColor, width: u32) -> Drawn {
        let points: Vec<_> = points.iter().map(|point| self.at(*point)).collect();
        self.area.draw(&PathElement::new(points, colour.stroke_width(width)))
    }

    /// Broken after so many pixels, for as many as come second.
    pub(super) fn dashed(&self, points: &[[i32; 2]], colour: RGBColor, width: u32, [on, off]: [u32; 2]) -> Drawn {
        let points: Vec<_> = points.iter().map(|point| self.at(*point)).collect();
        self.area
            .draw(&DashedPathElement::new(points, on, off, colour.stroke_width(width)))
    }

    pub(super) fn rectangle(&self, from: [i32; 2], to: [i32; 2], colour: RGBColor) -> Drawn {
        self.area
            .draw(&Rectangle::new([self.at(from), self.at(to)], colour.filled()))
    }

    pub(super) fn polygon(&self, points: &[[i32; 2]], fill: impl Into<ShapeStyle>) -> Drawn {
        let points: Vec<_> = points.iter().map(|point| self.at(*point)).collect();
        self.area.draw(&Polygon::new(points, fill))
    }

    pub(super) fn write(&self, text: &str, at: [i32; 2], style: TextStyle<'_>) -> Drawn {
        self.area.draw(&Text::new(text.to_owned(), self.at(at), style))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_take_several_lines() {
        assert_eq!(wrapped("Total time by α", 13, 600), ["Total time by α"]);
        assert_eq!(wrapped("zipf:0.99,rate=5910", 13, 90), ["zipf:0.99,", "rate=5910"]);
        assert_eq!(wrapped("abcdeghkn", 10, 24), ["abcd", "eghk", "n"]);
        assert_eq!(wrapped("", 13, 1), [""]);
        assert_eq!(wrapped("ab", 13, 1), ["a", "b"]);
    }
}
