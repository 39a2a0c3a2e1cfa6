# mmalign with all that trains, on the CPU or on NVIDIA GPUs; what it writes is yours:
#   docker build --build-arg UID=$(id -u) -t mmalign .
#   docker run --rm -v "$PWD:/work" mmalign run quickstart
#   docker run --rm -v "$PWD:/work" --gpus all --ipc host mmalign run RECIPE --devices 8
FROM python:3.11-slim
ARG UID=1000
RUN useradd --create-home --uid $UID mmalign && mkdir /work && chown mmalign /work
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY mmalign /src/mmalign
COPY cli /src/cli
COPY registry /src/registry
COPY recipes /src/recipes
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[train]"
USER mmalign
WORKDIR /work
ENTRYPOINT ["mmalign"]
CMD ["--help"]
