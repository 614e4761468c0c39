"""Packaging: everything that can change lives in settings.ini, which nbdev reads too."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here / 'settings.ini', encoding='utf-8')
settings = config['DEFAULT']

suffix = '_requirements'
extras = {key.removesuffix(suffix): value.split() for key, value in settings.items() if key.endswith(suffix)}
alone = {'vllm'}  # brings a torch and a transformers of its own, so it is never part of `all`
extras['all'] = sorted({name for extra, names in extras.items() if extra not in alone for name in names})
readme = here / 'README.md'

setup(
    name=settings['lib_name'],
    version=settings['version'],
    description=settings['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else settings['description'],
    long_description_content_type='text/markdown',
    author=settings['author'],
    license='Apache-2.0',
    url=settings['git_url'],
    keywords=settings['keywords'],
    python_requires=f">={settings['min_python']}",
    package_dir={'': '.'},  # lets an editable install be a plain path entry
    packages=find_packages(include=['interlat', 'interlat.*']),
    package_data={'interlat': ['assets/**']},
    install_requires=settings['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': settings['console_scripts'].split()},
    zip_safe=False,
)
