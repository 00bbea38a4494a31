//! The data of a chart: bars, lines, their marks and intervals, and what was published.

use plotters::prelude::{Color as _, RGBColor};
use plotters::style::text_anchor::{HPos, VPos};

use super::draw::{BACKGROUND, Canvas, Drawn, INK, Layout, TEXT_PIXELS, style, width};
use super::{Chart, Kind, Mark, Series, number};

/// Okabe and Ito, Color Universal Design, 2008; without black, which is the text's, and yellow last, which is faint on white.
const PALETTE: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0x56, 0xB4, 0xE9),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0xF0, 0xE4, 0x42),
];

/// Widest bar in pixels.
const BAR: i32 = 72;
/// Of a category the share that bars take.
const BARS_PERCENT: i32 = 78;
/// Points that are closer than that, in the mean, have no marks and a band instead of whiskers.
const CLOSE: i32 = 10;
/// How lines are broken, in turn.
const DASHES: [Option<[u32; 2]>; 3] = [None, Some([8, 4]), Some([3, 3])];
/// Half of a mark.
const HALF: i32 = 4;

fn colour(index: usize) -> RGBColor {
    PALETTE[index % PALETTE.len()]
}

/// Whether a number stands above each bar.
pub(super) fn has_numbers(chart: &Chart) -> bool {
    let bars = chart.series.len() * chart.x.categories.len();
    chart.kind == Kind::Bars && bars <= 16
}

pub(super) fn draw(canvas: &Canvas<'_, '_>, chart: &Chart, layout: &Layout) -> Drawn {
    if chart.kind == Kind::Bars {
        return bars(canvas, chart, layout);
    }
    // All bands below all lines.
    for (index, series) in chart.series.iter().enumerate() {
        if is_close(series, layout) {
            band(canvas, chart.kind, series, index, layout)?;
        }
    }
    for (index, series) in chart.series.iter().enumerate() {
        line(canvas, chart.kind, series, index, layout)?;
    }
    for series in &chart.series {
        for &[x, y] in series
            .published
            .iter()
            .filter(|point| point.iter().all(|part| part.is_finite()))
        {
            diamond(canvas, [layout.x.at(x), layout.y.at(y)])?;
        }
    }
    Ok(())
}

fn drawable(series: &Series) -> impl Iterator<Item = &Mark> {
    series.points.iter().filter(|point| point.is_drawable())
}

fn is_close(series: &Series, layout: &Layout) -> bool {
    drawable(series).count() as i32 * CLOSE > layout.right - layout.left
}

fn bars(canvas: &Canvas<'_, '_>, chart: &Chart, layout: &Layout) -> Drawn {
    let (words, series) = (chart.x.categories.len().max(1) as i32, chart.series.len().max(1) as i32);
    let band = (layout.right - layout.left) / words;
    let wide = (band * BARS_PERCENT / 100 / series).clamp(2, BAR);
    let base = layout.y.base();
    let room = if series == 1 { band } else { wide + 4 };
    for (index, of) in chart.series.iter().enumerate() {
        let middle = |x: f64| layout.x.at(x) - wide * series / 2 + wide * index as i32 + wide / 2;
        let gap = if wide > 8 { 2 } else { 0 };
        for point in drawable(of) {
            let (x, y) = (middle(point.x), layout.y.at(point.y));
            let [left, right] = [x - wide / 2 + gap / 2, x - wide / 2 + wide - gap / 2];
            canvas.rectangle([left, y.min(base)], [right, y.max(base)], colour(index))?;
            let mut top = y.min(base);
            if let Some(interval) = point.whiskers() {
                let ends = interval.map(|end| layout.y.at(end));
                whisker(canvas, x, [ends[1], ends[0]])?;
                top = top.min(ends[1]);
            }
            let published = of
                .published
                .iter()
                .filter(|other| other[0] == point.x && other[1].is_finite());
            let highest = published.map(|other| layout.y.at(other[1]) - HALF - 2).min();
            // A diamond well above its bar leaves room for the number between.
            top = highest
                .filter(|diamond| diamond + 2 * HALF + 22 > top)
                .map_or(top, |diamond| top.min(diamond));
            let text = number(point.y);
            if has_numbers(chart) && width(&text, TEXT_PIXELS) <= room {
                canvas.write(
                    &text,
                    [x, top - 3],
                    style(TEXT_PIXELS, HPos::Center, VPos::Bottom, false),
                )?;
            }
        }
        for &[x, y] in of
            .published
            .iter()
            .filter(|point| point.iter().all(|part| part.is_finite()))
        {
            diamond(canvas, [middle(x), layout.y.at(y)])?;
        }
    }
    Ok(())
}

/// The way of a series' values, as straight lines or as steps.
fn way(kind: Kind, layout: &Layout, values: impl Iterator<Item = (f64, f64)>) -> Vec<[i32; 2]> {
    let mut way: Vec<[i32; 2]> = Vec::new();
    for (x, y) in values {
        let to = [layout.x.at(x), layout.y.at(y)];
        if let (Kind::Steps, Some(&[_, before])) = (kind, way.last()) {
            way.push([to[0], before]);
        }
        way.push(to);
    }
    way
}

fn band(canvas: &Canvas<'_, '_>, kind: Kind, series: &Series, index: usize, layout: &Layout) -> Drawn {
    let end = |which: usize| {
        let ends = drawable(series).map(move |point| (point.x, point.whiskers().unwrap_or([point.y; 2])[which]));
        way(kind, layout, ends)
    };
    if drawable(series).all(|point| point.whiskers().is_none()) {
        return Ok(());
    }
    let mut around = end(0);
    around.extend(end(1).into_iter().rev());
    canvas.polygon(&around, colour(index).mix(0.2))
}

fn line(canvas: &Canvas<'_, '_>, kind: Kind, series: &Series, index: usize, layout: &Layout) -> Drawn {
    let way = way(kind, layout, drawable(series).map(|point| (point.x, point.y)));
    stroke(canvas, index, &way)?;
    if kind == Kind::Steps || is_close(series, layout) {
        return Ok(());
    }
    for point in drawable(series) {
        let x = layout.x.at(point.x);
        if let Some(interval) = point.whiskers() {
            let [low, high] = interval.map(|end| layout.y.at(end));
            whisker(canvas, x, [high, low])?;
        }
        mark(canvas, index, [x, layout.y.at(point.y)])?;
    }
    Ok(())
}

/// A line that others show through where they are the same.
fn stroke(canvas: &Canvas<'_, '_>, index: usize, way: &[[i32; 2]]) -> Drawn {
    match DASHES[index % DASHES.len()] {
        None => canvas.line(way, colour(index), 2),
        Some(dashes) => canvas.dashed(way, colour(index), 2, dashes),
    }
}

/// A mark of a shape of its own.
fn mark(canvas: &Canvas<'_, '_>, index: usize, [x, y]: [i32; 2]) -> Drawn {
    let fill = colour(index).filled();
    match index % 4 {
        // A circle of twelve corners has the size of the others.
        0 => {
            let corners = [
                [5, 0],
                [4, 3],
                [3, 4],
                [0, 5],
                [-3, 4],
                [-4, 3],
                [-5, 0],
                [-4, -3],
                [-3, -4],
                [0, -5],
                [3, -4],
                [4, -3],
            ];
            canvas.polygon(&corners.map(|[across, down]| [x + across, y + down]), fill)
        }
        1 => canvas.rectangle([x - HALF, y - HALF], [x + HALF, y + HALF], colour(index)),
        2 => canvas.polygon(
            &[[x, y - HALF - 1], [x + HALF + 1, y + HALF], [x - HALF - 1, y + HALF]],
            fill,
        ),
        _ => canvas.polygon(
            &[[x, y + HALF + 1], [x + HALF + 1, y - HALF], [x - HALF - 1, y - HALF]],
            fill,
        ),
    }
}

/// What stands for a series in the legend.
pub(super) fn sign(canvas: &Canvas<'_, '_>, kind: Kind, index: usize, [x, y]: [i32; 2]) -> Drawn {
    match kind {
        Kind::Bars => canvas.rectangle([x - 7, y - 6], [x + 7, y + 6], colour(index)),
        Kind::Steps => stroke(canvas, index, &[[x - 11, y], [x + 11, y]]),
        Kind::Lines => {
            stroke(canvas, index, &[[x - 11, y], [x + 11, y]])?;
            mark(canvas, index, [x, y])
        }
    }
}

/// A published number: hollow, as nothing else is.
pub(super) fn diamond(canvas: &Canvas<'_, '_>, [x, y]: [i32; 2]) -> Drawn {
    let half = HALF + 2;
    let corners = [[x, y - half], [x + half, y], [x, y + half], [x - half, y]];
    canvas.polygon(&corners, BACKGROUND.filled())?;
    let [first, second, ..] = corners;
    canvas.line(&[&corners[..], &[first, second]].concat(), INK, 2)
}

/// An interval, from top to bottom.
pub(super) fn whisker(canvas: &Canvas<'_, '_>, x: i32, [top, bottom]: [i32; 2]) -> Drawn {
    canvas.line(&[[x, top], [x, bottom]], INK, 1)?;
    for y in [top, bottom] {
        canvas.line(&[[x - 4, y], [x + 4, y]], INK, 1)?;
    }
    Ok(())
}
