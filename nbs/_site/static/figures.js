// Draws a page's figures with the Plotly that lies beside this script, each when the reader comes near it.
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, '');
  const narrow = 480; // pixels: below, the picture says more than a squeezed figure

  let plotly;
  const loaded = () => plotly ??= new Promise((done, failed) => {
    const script = Object.assign(document.createElement('script'), {src: here + 'plotly.min.js', onload: done, onerror: failed});
    document.head.append(script);
  });

  async function draw(source) {
    const {data, layout} = JSON.parse(source.textContent);
    const picture = source.previousElementSibling?.querySelector('img') ?? source.parentElement.querySelector('img');
    if (picture && source.parentElement.clientWidth < narrow) return;
    await loaded();
    const box = Object.assign(document.createElement('div'), {className: 'drawn'});
    box.style.height = (layout.height ?? 450) + 'px';
    source.after(box);
    await Plotly.newPlot(box, data, {...layout, width: undefined}, {responsive: true, displaylogo: false});
    picture?.remove();
  }

  addEventListener('DOMContentLoaded', () => {
    const near = new IntersectionObserver(seen => seen.filter(s => s.isIntersecting).forEach(s => {
      near.unobserve(s.target);
      draw(s.target.querySelector('script.figure'));
    }), {rootMargin: '400px'});
    document.querySelectorAll('script.figure').forEach(source => near.observe(source.parentElement));
  });
})();
